"""Kernel Inception distance: unbiased at any number of pictures (Binkowski et al. 2018).

arXiv:1801.01401. On other features than Inception's it is a kernel distance of those features.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kid:
    """Mean and standard deviation over subsets; the mean may come out below zero."""

    mean: float
    spread: float
    subsets: int
    subset_size: int


def kid(
    features: np.ndarray,
    reference: np.ndarray,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Kid | None:
    """KID of features [n, d] and [m, d], over random subsets drawn without repeats.

    Where a set has fewer than ``subset_size`` rows, subsets are half of it, so that the spread
    says something. Returns None where a set has fewer than four rows.
    """
    fewest = min(len(features), len(reference))
    size = subset_size if fewest >= subset_size else fewest // 2
    if size < 2:
        return None
    random = np.random.default_rng(seed)
    values = [
        squared_mmd(
            features[random.permutation(len(features))[:size]],
            reference[random.permutation(len(reference))[:size]],
        )
        for _ in range(subsets)
    ]
    return Kid(float(np.mean(values)), float(np.std(values)), subsets, size)


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of [n, d] and [n, d] under KID's kernel."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = len(a)
    within = sum(kernel.sum() - np.trace(kernel) for kernel in (_kernel(a, a), _kernel(b, b)))
    return float(within / (size * (size - 1)) - 2 * _kernel(a, b).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(x.y / d + 1)^3`` for every row x of ``a`` and y of ``b``."""
    return (a @ b.T / a.shape[1] + 1) ** 3
