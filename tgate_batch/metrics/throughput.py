"""Images a second and batch latency, from what adds up over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STEPS = 256  # buckets of a latency histogram between a second and two: 0.3% each
_OCTAVES = 20  # from 2^-20 to 2^20 seconds


@dataclass(frozen=True)
class Batches:
    """The batches of some rows, one entry each, in order.

    ``first_row`` is the row that a batch begins at, ``images`` the images of it that were
    delivered. Seconds are device time of whole batches (denoising and decoding). ``warm_up`` marks
    a worker's first batch of an arm, which no figure of time counts.
    """

    first_row: np.ndarray
    images: np.ndarray
    seconds: np.ndarray
    denoise_seconds: np.ndarray
    decode_seconds: np.ndarray
    warm_up: np.ndarray

    @classmethod
    def of(
        cls,
        batch: np.ndarray,
        seconds: np.ndarray,
        denoise_seconds: np.ndarray,
        decode_seconds: np.ndarray,
        warm_up: np.ndarray,
    ) -> Batches:
        """From the columns of delivered rows: a batch's number, -1 for rows without one, and what
        each of its rows says alike."""
        rows = np.flatnonzero((batch >= 0) & (np.nan_to_num(seconds) > 0))
        _, first, images = np.unique(batch[rows], return_index=True, return_counts=True)
        order = np.argsort(first)
        chosen = rows[first[order]]
        return cls(
            chosen,
            images[order],
            seconds[chosen],
            denoise_seconds[chosen],
            decode_seconds[chosen],
            warm_up[chosen],
        )


def histogram(seconds: np.ndarray) -> np.ndarray:
    """How many of these seconds [n] fall into each bucket, int64; histograms add up."""
    with np.errstate(divide="ignore"):
        places = np.floor((np.log2(seconds) + _OCTAVES) * _STEPS)
    inside = np.clip(places, 0, 2 * _OCTAVES * _STEPS - 1).astype(np.int64)
    return np.bincount(inside, minlength=2 * _OCTAVES * _STEPS)


def quantile(counts: np.ndarray, share: float) -> float | None:
    """The seconds that ``share`` of a histogram lies at or below, within 0.14%; None for none."""
    total = counts.sum()
    if not total:
        return None
    bucket = int(np.searchsorted(np.cumsum(counts), share * total))
    return float(2 ** ((bucket + 0.5) / _STEPS - _OCTAVES))
