"""The standard normal distribution, for arrays."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

_ERFC: Callable[[np.ndarray], np.ndarray] = np.vectorize(math.erfc, otypes=[float])


def below(x: np.ndarray | float) -> np.ndarray:
    """Returns P(Z < x), elementwise."""
    return 0.5 * _ERFC(-np.asarray(x, float) / math.sqrt(2))


def density(x: np.ndarray) -> np.ndarray:
    """Returns the density at x, elementwise."""
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def quantile(probability: float) -> float:
    """Returns the x that Z is below with this probability."""
    return NormalDist().inv_cdf(probability)
