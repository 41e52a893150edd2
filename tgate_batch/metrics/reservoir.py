"""A uniform sample of rows that pass by once, in flat memory (reservoir sampling)."""

import numpy as np


class Reservoir:
    """Keeps ``size`` rows of all that were added, each as likely as any other.

    Every row draws a number, and those with the smallest stay. The same rows in the same order
    give the same sample, however they were cut into batches.
    """

    def __init__(self, size: int, seed: int = 0):
        self._size = size
        self._random = np.random.default_rng(seed)
        self._rows: np.ndarray | None = None
        self._draws = np.empty(0)

    def add(self, rows: np.ndarray) -> None:
        """Takes rows [n, d] into account."""
        draws = np.concatenate([self._draws, self._random.random(len(rows))])
        together = rows if self._rows is None else np.concatenate([self._rows, rows])
        kept = np.sort(np.argsort(draws, kind="stable")[: self._size])
        self._rows, self._draws = together[kept], draws[kept]

    @property
    def rows(self) -> np.ndarray:
        """The sample [at most size, d], in the order of arrival."""
        return np.empty((0, 0), np.float32) if self._rows is None else self._rows
