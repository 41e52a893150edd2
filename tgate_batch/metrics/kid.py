"""Kernel distances between two sets of features, from sums over pairs of images.

The kernel Inception distance (Binkowski et al. 2018, arXiv:1801.01401) is the unbiased squared
maximum mean discrepancy (MMD) with a polynomial kernel of the third degree. On other features than
Inception's it is called a kernel distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tgate_batch.metrics.jackknife import GROUPS, leave_one_out

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

_ROWS = 1024  # rows of a kernel matrix computed at once


def polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns ``(x.y / d + 1)^3``, [n, m], for rows x of ``a`` [n, d] and y of ``b`` [m, d]."""
    values = a @ b.T
    values /= a.shape[1]
    values += 1
    return values * values * values  # ** 3 takes ten times as long


@dataclass(frozen=True)
class KernelSums:
    """Sums of the kernel over pairs of images, by groups.

    ``pairs`` [20, 20] are over ordered pairs of images of different prompts, ``pair_counts`` their
    numbers. ``cross`` [20] are over pairs of an image and a reference image, ``counts`` [20] the
    numbers of images. ``within`` is the mean over ordered pairs of the ``reference_count``
    reference images.
    """

    pairs: np.ndarray
    pair_counts: np.ndarray
    cross: np.ndarray
    counts: np.ndarray
    within: float
    reference_count: int

    def values(self) -> np.ndarray | None:
        """Returns the 21 values of the unbiased squared MMD; None if a set has no pair."""
        pairs, numbers = _leave_one_out(self.pairs), _leave_one_out(self.pair_counts)
        cross, counts = leave_one_out(self.cross), leave_one_out(self.counts)
        if (numbers <= 0).any() or self.reference_count < 2:
            return None
        return pairs / numbers - 2 * cross / (counts * self.reference_count) + self.within


def kernel_sums(
    features: np.ndarray,
    groups: np.ndarray,
    prompts: np.ndarray,
    reference: np.ndarray,
    kernel: Kernel = polynomial,
    within: float | None = None,
) -> KernelSums:
    """Returns the sums of features [n, d], with their groups and prompts, and a reference [m, d].

    Pairs of images of one prompt are excluded: they resemble each other, and would bias the sum.
    ``within`` is ``mean_of_pairs(reference)``, if already known. Takes about (n + m)^2 d operations
    in float64.
    """
    order = np.argsort(groups, kind="stable")
    rows, groups, prompts = features[order].astype(np.float64), groups[order], prompts[order]
    other = reference.astype(np.float64)
    member = np.equal.outer(groups, np.arange(GROUPS)).astype(np.float64)
    pairs, cross = np.zeros((GROUPS, GROUPS)), np.zeros(GROUPS)
    for start in range(0, len(rows), _ROWS):
        end = min(start + _ROWS, len(rows))
        size, here = end - start, member[start:end].T
        values = kernel(rows[start:end], rows[start:])
        values *= np.not_equal.outer(prompts[start:end], prompts[start:])
        beyond = here @ values[:, size:] @ member[end:]
        pairs += here @ values[:, :size] @ member[start:end] + beyond + beyond.T
        if len(other):
            cross += here @ kernel(rows[start:end], other).sum(axis=1)
    counts = member.sum(axis=0)
    numbers = np.outer(counts, counts) - np.diag(_pairs_of_one_prompt(groups, prompts))
    if within is None:
        within = mean_of_pairs(other, kernel)
    return KernelSums(pairs, numbers, cross, counts, within, len(other))


def _pairs_of_one_prompt(groups: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Number of ordered pairs of one prompt in each group [20], an image with itself included."""
    _, first, each = np.unique(prompts, return_index=True, return_counts=True)
    return np.bincount(groups[first], each.astype(np.float64) ** 2, GROUPS)


def mean_of_pairs(rows: np.ndarray, kernel: Kernel = polynomial) -> float:
    """Returns the kernel's mean over ordered pairs of different rows [m, d]; NaN if m < 2."""
    rows = rows.astype(np.float64)
    size, total = len(rows), 0.0
    if size < 2:
        return float("nan")
    for start in range(0, size, _ROWS):
        block = kernel(rows[start : start + _ROWS], rows[start:])
        here = block.shape[0]
        total += 2 * block.sum() - block[:, :here].sum() - np.trace(block[:, :here])
    return float(total / (size * (size - 1)))


def _leave_one_out(pairs: np.ndarray) -> np.ndarray:
    """Returns the sum [21] of pairs [20, 20] of all groups, then without each group."""
    total = pairs.sum()
    lost = pairs.sum(axis=0) + pairs.sum(axis=1) - np.diagonal(pairs)
    return np.concatenate([[total], total - lost])
