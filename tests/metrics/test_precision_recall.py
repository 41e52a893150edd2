import numpy as np
import pytest

from tgate_batch.metrics.precision_recall import precision_recall


def line(*points):
    return np.array(points, float)[:, None]


def test_a_set_covers_itself():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    assert precision_recall(rows, rows) == (1.0, 1.0)


def test_far_sets_share_nothing():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    assert precision_recall(rows, rows + 1000) == (0.0, 0.0)


def test_a_collapsed_set_is_precise_and_recalls_little():
    # All at 0.5 between the reference's 0..3: inside its balls of radius 1, with balls of radius 0
    # itself.
    precision, recall = precision_recall(line(0.5, 0.5, 0.5), line(0, 1, 2, 3), neighbours=1)
    assert (precision, recall) == (1.0, 0.0)


def test_half_of_two_clusters_is_recalled():
    reference = line(0, 1, 2, 100, 101, 102)
    assert precision_recall(line(0, 1, 2), reference, neighbours=1) == (1.0, 0.5)


@pytest.mark.parametrize("few", [0, 3])
def test_fewer_rows_than_neighbours_have_no_manifold(few):
    rows = np.zeros((few, 2))
    assert precision_recall(rows, np.zeros((9, 2))) is None
