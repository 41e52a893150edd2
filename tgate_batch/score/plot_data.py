"""Aggregates for the report's plots: speed over the run, per worker, and change histograms.

They add up like all sums. The images that changed most are kept by name, a few of each metric.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tgate_batch.metrics.base import PictureMetric
from tgate_batch.metrics.throughput import Batches
from tgate_batch.score.partial_sums import MOST, Sums

BINS = 40  # of the distribution of a metric's changes
SLICES = 16  # that a chunk is cut into, to see how fast it went on
_POINTS = 32  # at most, of the whole course


def course(batches: Batches, places: np.ndarray, chunk: int, length: int) -> Sums:
    """Images and seconds of each slice of a chunk; ``places``: of batches in its ``length``."""
    counted = ~batches.warm_up
    where = places[counted] * SLICES // max(length, 1)
    key = ("course", f"{chunk:06d}")
    return {
        (*key, "images"): np.bincount(where, batches.images[counted], SLICES),
        (*key, "seconds"): np.bincount(where, batches.seconds[counted], SLICES),
    }


def by_worker(batches: Batches, workers: np.ndarray) -> Sums:
    """Images and seconds of each worker; ``workers``: names, one a row."""
    names = workers[batches.first_row]
    found: Sums = {}
    for name in sorted({str(name) for name in names if name is not None}):
        own = (names == name) & ~batches.warm_up
        found["worker", name, "images"] = np.asarray(float(batches.images[own].sum()))
        found["worker", name, "seconds"] = np.asarray(batches.seconds[own].sum())
    return found


def spread(metric: PictureMetric, changes: np.ndarray) -> Sums:
    """How many changes fall into each bin of the metric's range; the end bins have all beyond."""
    if metric.spread is None:
        return {}
    low, high = metric.spread
    places = np.clip(np.floor((changes - low) / (high - low) * BINS), 0, BINS - 1)
    counts = np.bincount(places.astype(np.int64), minlength=BINS)
    return {("spread", metric.name): counts.astype(np.float64)}


def worst(
    metric: PictureMetric, changes: np.ndarray, held: list[dict[str, Any]]
) -> list[tuple[int, float, float]]:
    """Row, change and badness of the images that belong among the ``held`` ones, worst first.

    ``changes`` are NaN where there is none. A difference to the better is not bad; a value beside
    the baseline's image always may be.
    """
    sign = 1.0 if metric.column.better == "lower" else -1.0
    badness = np.nan_to_num(sign * changes, nan=-np.inf)
    least = -np.inf if metric.needs_baseline else 0.0
    if len(held) >= MOST:
        least = max(least, held[-1]["badness"])
    rows = np.argsort(-badness, kind="stable")[:MOST]
    return [
        (int(row), float(changes[row]), float(badness[row])) for row in rows if badness[row] > least
    ]


def plot_data(sums: Sums, metrics: Iterable[PictureMetric]) -> dict[str, Any]:
    """Returns the plot data of an arm's scores: ``course``, ``by_worker`` and ``spread``.

    ``course`` is in the order of the prompts, ``by_worker`` by name; both with images and seconds
    of batches that are no warm-up. ``spread`` has ``low``, ``high`` and the ``counts`` between.
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
            metric.name: _spread(metric.spread, sums["spread", metric.name])
            for metric in metrics
            if metric.spread is not None and ("spread", metric.name) in sums
        },
    }


def _course(slices: np.ndarray) -> list[dict[str, float]]:
    """[n, 2] -> at most 32 points of neighbours added up, without empty ones."""
    each = -(-len(slices) // _POINTS)
    padded = np.zeros((-(-len(slices) // each) * each, 2))
    padded[: len(slices)] = slices
    points = padded.reshape(-1, each, 2).sum(axis=1)
    return [_timed(images, seconds) for images, seconds in points if images]


def _timed(images: Any, seconds: Any) -> dict[str, float]:
    return {"images": int(images), "seconds": float(seconds)}


def _spread(between: tuple[float, float], counts: np.ndarray) -> Mapping[str, Any]:
    low, high = between
    return {"low": low, "high": high, "counts": [int(count) for count in counts]}
