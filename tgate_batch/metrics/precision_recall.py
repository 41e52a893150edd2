"""Improved precision and recall of a set of pictures (Kynkaanniemi et al. 2019)."""

import numpy as np

NEIGHBOURS = 3  # the k of the published figures
_ROWS = 1024  # rows of a distance matrix held at once


def precision_recall(
    features: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS
) -> tuple[float, float] | None:
    """(precision, recall) of features [n, d] against a reference [m, d] (arXiv:1904.06991).

    A set's manifold is the union of balls around its rows, each as wide as the distance to the
    row's ``neighbours``-th nearest other row. Precision is the share of features inside the
    reference's manifold, recall the share of the reference inside that of the features. Takes
    n m d operations. Returns None where a set has no ``neighbours`` other rows.
    """
    if min(len(features), len(reference)) <= neighbours:
        return None
    a, b = features.astype(np.float64), reference.astype(np.float64)
    radii_a, radii_b = _radii(a, neighbours), _radii(b, neighbours)
    return _inside(a, b, radii_b), _inside(b, a, radii_a)


def _inside(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> float:
    hits = [(block <= squared_radii).any(axis=1) for block in _squared_distances(points, centres)]
    return float(np.concatenate(hits).mean())


def _radii(rows: np.ndarray, neighbours: int) -> np.ndarray:
    # A row's nearest is itself, so the k-th other one is at index k.
    blocks = _squared_distances(rows, rows)
    return np.concatenate([np.partition(block, neighbours)[:, neighbours] for block in blocks])


def _squared_distances(a: np.ndarray, b: np.ndarray):
    lengths = np.square(b).sum(axis=1)
    for start in range(0, len(a), _ROWS):
        block = a[start : start + _ROWS]
        squared = np.square(block).sum(axis=1)[:, None] + lengths - 2 * block @ b.T
        yield np.maximum(squared, 0)
