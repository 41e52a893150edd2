"""Group-sequential tests: a plan is tested several times while its prompts arrive.

The error that is allowed at a share t of all prompts is ``level * t**2`` (Lan and DeMets 1983,
Biometrika 70, 659). The critical values follow by numerical integration over the test's path
(Armitage, McPherson and Rowe 1969).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from tgate_batch.plan_search import normal

SHARES = (0.15, 0.3, 0.5, 0.75, 1.0)  # of the prompts left, at which a plan is looked at
_POINTS = 401  # of the integration, an odd number
_LOWEST = -7.0  # standard errors: below it, a path is as good as impossible


def critical_values(level: float, shares: Sequence[float]) -> tuple[float, ...]:
    """Returns the z that a plan needs at each look; ``shares``: of all prompts, increasing.

    Without an effect, some look reaches its z with probability ``level`` at most.
    """
    return _critical_values(round(level, 9), tuple(round(share, 6) for share in shares))


@lru_cache(4096)
def _critical_values(level: float, shares: tuple[float, ...]) -> tuple[float, ...]:
    first = shares[0]
    values = [normal.quantile(1 - level * first**2)]
    paths = np.linspace(_LOWEST, values[0], _POINTS) * np.sqrt(first)
    weights = _simpson(paths) * normal.density(paths / np.sqrt(first)) / np.sqrt(first)
    for before, now in pairwise(shares):
        step = np.sqrt(now - before)
        allowed = level * (now**2 - before**2)
        bound = _bound(paths, weights, step, allowed)
        values.append(float(bound / np.sqrt(now)))
        reached = np.linspace(_LOWEST * np.sqrt(now), bound, _POINTS)
        moves = normal.density((reached[:, None] - paths[None]) / step) / step
        paths, weights = reached, _simpson(reached) * (moves @ weights)
    return tuple(values)


def _bound(paths: np.ndarray, weights: np.ndarray, step: float, allowed: float) -> float:
    """The value that a path from ``paths`` exceeds after ``step`` with probability ``allowed``."""
    low, high = -10.0, 10.0
    for _ in range(45):
        middle = (low + high) / 2
        beyond = float(normal.below((paths - middle) / step) @ weights)
        low, high = (middle, high) if beyond > allowed else (low, middle)
    return (low + high) / 2


def _simpson(points: np.ndarray) -> np.ndarray:
    weights = np.full(len(points), 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return weights * (points[1] - points[0]) / 3
