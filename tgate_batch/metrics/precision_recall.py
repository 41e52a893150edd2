"""Improved precision and recall of a set of images (Kynkaanniemi et al. 2019)."""

from collections.abc import Iterator

import numpy as np

NEIGHBOURS = 3  # the k of the published figures
_ROWS = 1024  # rows of a distance matrix computed at once


def precision_recall(
    features: np.ndarray,
    reference: np.ndarray,
    neighbours: int = NEIGHBOURS,
    reference_radii: np.ndarray | None = None,
) -> tuple[float, float] | None:
    """Returns (precision, recall) of features [n, d] for a reference [m, d] (arXiv:1904.06991).

    A set's manifold is the union of balls around its rows; a ball's radius is the distance to the
    row's ``neighbours``-th nearest other row. Precision is the share of features inside the
    reference's manifold, recall the share of the reference inside the features' manifold. Takes
    n (n + m) d operations; ``reference_radii`` are ``radii(reference)``, if already known. Returns
    None if a set has too few rows.
    """
    if min(len(features), len(reference)) <= neighbours:
        return None
    own = radii(features, neighbours)
    others = radii(reference, neighbours) if reference_radii is None else reference_radii
    inside, reached = [], np.zeros(len(reference), bool)
    for start, block in _squared_distances(features, reference):
        inside.append((block <= others).any(axis=1))
        reached |= (block <= own[start : start + len(block), None]).any(axis=0)
    return float(np.concatenate(inside).mean()), float(reached.mean())


def radii(rows: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Returns the squared distance [n] of each row [n, d] to its k-th nearest other row."""
    # A row's nearest row is itself, so its k-th other row is at index k.
    blocks = (block for _, block in _squared_distances(rows, rows))
    return np.concatenate([np.partition(block, neighbours)[:, neighbours] for block in blocks])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    centre = b.mean(axis=0, dtype=np.float64)  # centred values are small enough for float32
    a, b = ((rows - centre).astype(np.float32) for rows in (a, b))
    lengths = np.square(b).sum(axis=1)
    for start in range(0, len(a), _ROWS):
        block = a[start : start + _ROWS]
        squared = block @ b.T
        squared *= -2
        squared += np.square(block).sum(axis=1)[:, None]
        squared += lengths
        yield start, np.maximum(squared, 0, out=squared)
