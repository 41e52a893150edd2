"""Images per second and batch latency, from sums over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STEPS = 256  # bins of a latency histogram per octave: 0.3% each
_OCTAVES = 20  # from 2^-20 to 2^20 seconds


@dataclass(frozen=True)
class Batches:
    """The batches of some rows in order, as arrays with an entry per batch.

    ``first_row`` is a batch's first row, ``images`` its number of delivered images. Seconds are
    device time of whole batches (denoising and decoding). ``warm_up`` marks a worker's first batch
    of an arm, which is not timed.
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
        """Groups the columns of delivered rows by ``batch``, a number or -1 for rows without one.

        The other columns are equal in all rows of a batch.
        """
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
    """Returns the histogram of seconds [n], int64; histograms can be added."""
    with np.errstate(divide="ignore"):
        bins = np.floor((np.log2(seconds) + _OCTAVES) * _STEPS)
    bins = np.clip(bins, 0, 2 * _OCTAVES * _STEPS - 1).astype(np.int64)
    return np.bincount(bins, minlength=2 * _OCTAVES * _STEPS)


def quantile(counts: np.ndarray, share: float) -> float | None:
    """Returns the quantile of a histogram in seconds, within 0.14%; None if it is empty."""
    total = counts.sum()
    if not total:
        return None
    bucket = int(np.searchsorted(np.cumsum(counts), share * total))
    return float(2 ** ((bucket + 0.5) / _STEPS - _OCTAVES))
