"""Aggregates for the report's plots: speed over the run, per worker, and change histograms.

They are partial sums like all others. A few of the most-changed images of each metric are listed.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.throughput import Batches
from tgate_batch.score.partial_sums import MOST, Sums

BINS = 40  # of the histogram of a metric's changes
SLICES = 16  # of a chunk, for the speed over the run
_POINTS = 32  # at most, of the speed over the run


def course(batches: Batches, places: np.ndarray, chunk: int, length: int) -> Sums:
    """Returns images and seconds of each slice of a chunk.

    ``places`` are the positions of the batches in the chunk, which has ``length`` batches.
    """
    timed = ~batches.warm_up
    part = places[timed] * SLICES // max(length, 1)
    key = ("course", f"{chunk:06d}")
    return {
        (*key, "images"): np.bincount(part, batches.images[timed], SLICES),
        (*key, "seconds"): np.bincount(part, batches.seconds[timed], SLICES),
    }


def by_worker(batches: Batches, workers: np.ndarray) -> Sums:
    """Returns images and seconds of each worker; ``workers``: the name for each row."""
    names = workers[batches.first_row]
    sums: Sums = {}
    for name in sorted({str(name) for name in names if name is not None}):
        timed = (names == name) & ~batches.warm_up
        sums["worker", name, "images"] = np.asarray(float(batches.images[timed].sum()))
        sums["worker", name, "seconds"] = np.asarray(batches.seconds[timed].sum())
    return sums


def spread(metric: ImageMetric, changes: np.ndarray) -> Sums:
    """Returns the histogram of changes over the metric's range; the end bins include all beyond."""
    if metric.spread is None:
        return {}
    low, high = metric.spread
    bins = np.clip(np.floor((changes - low) / (high - low) * BINS), 0, BINS - 1)
    counts = np.bincount(bins.astype(np.int64), minlength=BINS)
    return {("spread", metric.name): counts.astype(np.float64)}


def worst(
    metric: ImageMetric, changes: np.ndarray, listed: list[dict[str, Any]]
) -> list[tuple[int, float, float]]:
    """Returns row, change and badness of the images to add to ``listed``, worst first.

    ``changes`` are NaN for rows without one. A change for the better is not bad; a value that
    compares with the baseline's image always can be.
    """
    badness = np.nan_to_num(metric.sign * changes, nan=-np.inf)
    least = -np.inf if metric.needs_baseline else 0.0
    if len(listed) >= MOST:
        least = max(least, listed[-1]["badness"])
    rows = np.argsort(-badness, kind="stable")[:MOST]
    return [
        (int(row), float(changes[row]), float(badness[row])) for row in rows if badness[row] > least
    ]


def plot_data(sums: Sums, metrics: Iterable[ImageMetric]) -> dict[str, Any]:
    """Returns the plot data of an arm's scores: ``course``, ``by_worker`` and ``spread``.

    ``course`` is in the order of the prompts, ``by_worker`` by name; both have images and seconds,
    without warm-up batches. ``spread`` has ``low``, ``high`` and ``counts`` of the bins between.
    """
    chunks = sorted(key[1] for key in sums if key[0] == "course" and key[2] == "images")
    points = [
        np.stack([sums["course", chunk, which] for which in ("images", "seconds")], axis=1)
        for chunk in chunks
    ]
    names = sorted(key[1] for key in sums if key[0] == "worker" and key[2] == "images")
    return {
        "course": _course(np.concatenate(points)) if points else [],
        "by_worker": {
            name: _timed(sums["worker", name, "images"], sums["worker", name, "seconds"])
            for name in names
        },
        "spread": {
            metric.name: {
                "low": metric.spread[0],
                "high": metric.spread[1],
                "counts": [int(count) for count in sums["spread", metric.name]],
            }
            for metric in metrics
            if metric.spread is not None and ("spread", metric.name) in sums
        },
    }


def _course(slices: np.ndarray) -> list[dict[str, float]]:
    """Sums neighbouring slices [n, 2] into at most 32 points, without empty ones."""
    each = -(-len(slices) // _POINTS)
    padded = np.zeros((-(-len(slices) // each) * each, 2))
    padded[: len(slices)] = slices
    points = padded.reshape(-1, each, 2).sum(axis=1)
    return [_timed(images, seconds) for images, seconds in points if images]


def _timed(images: Any, seconds: Any) -> dict[str, float]:
    return {"images": int(images), "seconds": float(seconds)}
