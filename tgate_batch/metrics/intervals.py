"""How sure a figure is: bootstrap intervals, and the distance of infinitely many pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tgate_batch.errors import UserError
from tgate_batch.metrics.frechet import Statistics, factor, sum_of_roots


@dataclass(frozen=True)
class Interval:
    """A value between the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Extrapolation:
    """The distance at several numbers of pictures, and where it goes without end."""

    counts: tuple[int, ...]
    distances: tuple[float, ...]
    infinite: float


def paired_interval(
    values: np.ndarray,
    baseline: np.ndarray,
    confidence: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Mean of ``values - baseline`` [n] with its bootstrap percentile interval.

    Pairs without two finite numbers are left out; returns None where fewer than two remain.
    """
    apart = np.asarray(values, float) - np.asarray(baseline, float)
    return mean_interval(apart, confidence, replicates, seed)


def mean_interval(
    values: np.ndarray, confidence: float = 0.95, replicates: int = 2000, seed: int = 0
) -> Interval | None:
    """Mean of the finite ones of ``values`` [n] with its bootstrap percentile interval."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None
    random = np.random.default_rng(seed)
    means = [
        values[random.integers(len(values), size=len(values))].mean() for _ in range(replicates)
    ]
    low, high = np.quantile(means, _tails(confidence))
    return Interval(float(values.mean()), float(low), float(high))


def frechet_interval(
    features: np.ndarray,
    reference: Statistics,
    confidence: float = 0.95,
    replicates: int = 100,
    seed: int = 0,
) -> Interval:
    """Frechet distance of features [n, d] with the bootstrap interval of these pictures.

    A resample repeats pictures, so its distance is biased upwards by more than the estimate's own
    bias. The interval is therefore the spread of the replicates about their mean, laid around the
    estimate. It says how far other pictures of the same model would move the figure, and nothing
    of the reference's own sampling. A replicate takes about min(n, d)^2 (n + d) operations.
    Raises UserError for fewer than two rows.
    """
    return _around(_Resampled(features, reference), len(features), confidence, replicates, seed)


def frechet_change(
    features: np.ndarray,
    baseline: np.ndarray,
    reference: Statistics,
    confidence: float = 0.95,
    replicates: int = 100,
    seed: int = 0,
) -> Interval:
    """Frechet distance of features less that of ``baseline``, both [n, d], row paired with row.

    Every replicate draws the same rows of both sets, so what the two share falls out of the
    interval. Laid around the estimate as in :func:`frechet_interval`. Raises UserError for fewer
    than two rows.
    """
    ours, theirs = _Resampled(features, reference), _Resampled(baseline, reference)
    return _around(
        lambda weights: ours(weights) - theirs(weights), len(features), confidence, replicates, seed
    )


def frechet_extrapolation(
    features: np.ndarray, reference: Statistics, seed: int = 0
) -> Extrapolation:
    """Frechet distance at n, n/2 and n/4 pictures, and at infinitely many by a line in 1/n.

    Chong and Forsyth 2020 (arXiv:1911.07023). The distances at n/2 and n/4 are means over the
    disjoint halves and quarters of one random order. The bias of the reference's own number of
    pictures stays in. Raises UserError for fewer than eight rows.
    """
    count = len(features)
    if count < 8:
        raise UserError(
            f"{count} usable images are too few to extrapolate from; eight are the least"
        )
    distance = _Resampled(features, reference)
    order = np.random.default_rng(seed).permutation(count)
    counts, distances = [], []
    for parts in (1, 2, 4):
        size = count // parts
        chosen = np.zeros((parts, count))
        for part in range(parts):
            chosen[part, order[part * size : (part + 1) * size]] = 1
        counts.append(size)
        distances.append(float(np.mean([distance(weights) for weights in chosen])))
    _, infinite = np.polyfit(1 / np.array(counts), distances, 1)
    return Extrapolation(tuple(counts), tuple(distances), float(infinite))


class _Resampled:
    """The Frechet distance of weighted rows to a reference, its fixed parts computed once."""

    def __init__(self, features: np.ndarray, reference: Statistics):
        if len(features) < 2:
            raise UserError(f"{len(features)} usable image(s) have no distance; two are the least")
        if features.shape[1] != reference.dimensions:
            raise UserError(
                f"features of {features.shape[1]} and of {reference.dimensions} dimensions cannot "
                "be compared; use the same extractor for both sets"
            )
        rows = features.astype(np.float64)
        centre = rows.mean(axis=0)
        self._rows = rows - centre
        self._apart = centre - reference.mean
        self._lengths = np.square(self._rows).sum(axis=1)
        self._trace = np.trace(reference.covariance)
        # With T = F F', the eigenvalues of S T are those of F' S F: rows are needed as x F only.
        turn, _ = factor(reference.covariance)
        self._turned = self._rows @ turn

    def __call__(self, weights: np.ndarray) -> float:
        """``weights`` [n]: how often each row is taken."""
        taken = weights > 0
        weights = weights[taken]
        count = weights.sum()
        offset = weights @ self._rows[taken] / count
        spread = (weights @ self._lengths[taken] - count * offset @ offset) / (count - 1)
        turned = self._turned[taken]
        turned = (turned - weights @ turned / count) * np.sqrt(weights / (count - 1))[:, None]
        small = turned if len(turned) < turned.shape[1] else turned.T
        apart = self._apart + offset
        shared = sum_of_roots(small @ small.T) if small.size else 0.0
        return max(float(apart @ apart + spread + self._trace - 2 * shared), 0.0)


def _around(
    figure: Callable[[np.ndarray], float],
    count: int,
    confidence: float,
    replicates: int,
    seed: int,
) -> Interval:
    """``figure`` of all rows, and the spread of its resamples about their mean, around it."""
    random = np.random.default_rng(seed)
    estimate = figure(np.ones(count))
    found = np.array(
        [
            figure(np.bincount(random.integers(count, size=count), minlength=count))
            for _ in range(replicates)
        ]
    )
    low, high = np.quantile(found - found.mean(), _tails(confidence))
    return Interval(estimate, estimate + float(low), estimate + float(high))


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2
