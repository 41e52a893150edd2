"""A uniform sample of streamed rows in constant memory, chosen by their names."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

SAMPLE = 10_000  # images whose features are kept for distances that need single images


class NamedSample:
    """Keeps the ``size`` rows whose names have the smallest blake2b hashes (bottom-k sampling).

    Every row is equally likely. The sample depends only on the names, not on the order of rows or a
    seed.
    """

    def __init__(self, size: int):
        self._size = size
        self._rows: list[np.ndarray] = []
        self._keys = np.empty(0, np.uint64)

    def add(self, names: Sequence[str], rows: np.ndarray) -> None:
        """Adds rows [n, d] with their n names."""
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
        chosen = np.argsort(self._keys, kind="stable")[: self._size]
        self._rows = [np.concatenate(self._rows)[chosen]] if self._rows else []
        self._keys = self._keys[chosen]
