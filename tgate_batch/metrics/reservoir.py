"""Uniform samples of rows that pass by once, in flat memory: by chance, or by their names."""

from collections.abc import Sequence
from hashlib import blake2b

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


class NamedSample:
    """Keeps the ``size`` rows whose names have the smallest blake2b hashes (bottom-k sampling).

    Every row is as likely as any other, and the sample depends on names alone: neither on the
    order in which rows come nor on a seed.
    """

    def __init__(self, size: int):
        self._size = size
        self._rows: list[np.ndarray] = []
        self._keys = np.empty(0, np.uint64)

    def add(self, names: Sequence[str], rows: np.ndarray) -> None:
        """Takes rows [n, d] of n names into account."""
        digests = [blake2b(name.encode(), digest_size=8).digest() for name in names]
        keys = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
        self._rows.append(rows)
        self._keys = np.concatenate([self._keys, keys])
        if len(self._keys) > 2 * self._size:
            self._cut()

    @property
    def rows(self) -> np.ndarray:
        """The sample [at most size, d], in the order of the hashes."""
        self._cut()
        return self._rows[0] if self._rows else np.empty((0, 0), np.float32)

    def _cut(self) -> None:
        kept = np.argsort(self._keys, kind="stable")[: self._size]
        self._rows = [np.concatenate(self._rows)[kept]] if self._rows else []
        self._keys = self._keys[kept]
