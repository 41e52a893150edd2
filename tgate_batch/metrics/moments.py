"""Count, sum and products of features by group of prompts, which can be added in any order."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.linalg import blas

from tgate_batch.errors import UserError
from tgate_batch.metrics.frechet import FrechetRoot, Statistics
from tgate_batch.metrics.jackknife import GROUPS

_ROWS = 512  # rows of a group multiplied at once: fewer are bound by memory bandwidth


class Moments:
    """For each group the product of its features, each followed by a 1, in float64.

    This matrix [d + 1, d + 1] contains ``sum x x'``, ``sum x`` and the count.
    """

    def __init__(self, dimensions: int, groups: int = GROUPS):
        """``groups``: 1 if no interval is needed."""
        self.dimensions = dimensions
        # Only the upper triangles are filled.
        self._sums = np.zeros((groups, dimensions + 1, dimensions + 1))
        self._packed: np.ndarray | None = None
        self._buffered: list[list[np.ndarray]] = [[] for _ in range(groups)]
        self._rows = [0] * groups

    def add(self, features: np.ndarray, groups: np.ndarray) -> None:
        """Adds features [n, d] of groups [n]; raises UserError if they are not finite."""
        if self._packed is not None:
            self.finish()
        if not np.isfinite(features).all():
            raise UserError("features have values that are not finite")
        if len(self._sums) == 1:
            groups = np.zeros(len(features), np.int64)
        order = np.argsort(groups, kind="stable")
        ends = np.searchsorted(groups[order], np.arange(len(self._sums) + 1))
        for group, (start, end) in enumerate(itertools.pairwise(ends)):
            if end > start:
                self._buffered[group].append(features[order[start:end]])
                self._rows[group] += end - start
                if self._rows[group] >= _ROWS:
                    self._multiply(group)

    def _multiply(self, group: int) -> None:
        if not self._buffered[group]:
            return
        rows = np.ones((self._rows[group], self.dimensions + 1))
        np.concatenate(self._buffered[group], out=rows[:, :-1])
        # In place: the transposed view is a lower triangle for BLAS.
        blas.dsyrk(1.0, rows.T, 1.0, self._sums[group].T, lower=1, overwrite_c=1)
        self._buffered[group], self._rows[group] = [], 0

    def finish(self) -> Moments:
        """Adds the buffered features to the sums; returns itself."""
        if self._packed is not None:
            self._sums = Moments.load(self._packed, self.dimensions)._sums
            self._packed = None
        for group in range(len(self._sums)):
            self._multiply(group)
        return self

    def merge(self, other: Moments) -> None:
        """Adds the sums of other features, in place."""
        self.finish()._sums += other.finish()._sums

    @property
    def count(self) -> int:
        return round(self.finish()._sums[:, -1, -1].sum())

    @property
    def group_counts(self) -> np.ndarray:
        """The number of images of each group."""
        return self.finish()._sums[:, -1, -1].round().astype(np.int64)

    def total(self) -> np.ndarray:
        """Returns the matrix of all groups [d + 1, d + 1], its upper triangle."""
        return self.finish()._sums.sum(axis=0)

    def of(self, group: int) -> np.ndarray:
        """Returns the matrix of one group, its upper triangle."""
        return self.finish()._sums[group]

    def without(self, total: np.ndarray, group: int) -> np.ndarray:
        """Returns the matrix of all groups but one, from the matrix of all."""
        return total - self._sums[group]

    def pack(self) -> None:
        """Halves the memory until the sums are used again."""
        self._packed = self.save()
        self._sums = np.empty((0, 0, 0))  # a view would keep the memory

    def save(self) -> np.ndarray:
        """Returns the packed upper triangles: float64 [groups, (d + 1)(d + 2) / 2]."""
        return self.finish()._sums[:, *np.triu_indices(self.dimensions + 1)]

    @classmethod
    def load(cls, triangles: np.ndarray, dimensions: int) -> Moments:
        """Restores the output of ``save``."""
        moments = cls(dimensions, len(triangles))
        moments._sums[:, *np.triu_indices(dimensions + 1)] = triangles
        return moments


def statistics(matrix: np.ndarray) -> Statistics:
    """Returns count, mean and scatter from an upper triangle of ``Moments``."""
    count = round(matrix[-1, -1])
    if count == 0:
        raise UserError("there are no usable images to take statistics of")
    upper = np.triu(matrix[:-1, :-1])
    products = upper + np.triu(upper, 1).T
    mean = matrix[:-1, -1] / matrix[-1, -1]
    return Statistics(count, mean, products - np.outer(mean, mean) * count)


def frechet_values(
    moments: Moments, root: FrechetRoot, lacking: Moments | None = None
) -> np.ndarray:
    """Returns the Frechet distance of all groups, then without each: float64 [21].

    ``lacking`` are images to exclude. Raises UserError if fewer than two images remain.
    """
    total = _less(moments.total(), None if lacking is None else lacking.total())
    matrices = (
        _less(moments.without(total, group), None if lacking is None else -lacking.of(group))
        for group in range(len(moments.group_counts))
    )
    return np.array([root.distance(statistics(matrix)) for matrix in (total, *matrices)])


def _less(matrix: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    return matrix if other is None else matrix - other
