import warnings

import numpy as np
import pytest
from pytorch_fid.fid_score import calculate_frechet_distance

from tgate_batch.errors import UserError
from tgate_batch.metrics.frechet import FrechetRoot, Statistics
from tgate_batch.metrics.jackknife import GROUPS, groups
from tgate_batch.metrics.moments import Moments, frechet_values, statistics


def features(n, d, seed=0):
    """Non-negative and skewed, as those of a network, with unequal spreads."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * np.logspace(0, -2, d)[:, None]
    return np.maximum(rng.normal(size=(n, d)) @ mix + 0.5, 0).astype(np.float32)


def moments_of(rows, places=None):
    found = Moments(rows.shape[1])
    found.add(rows, groups(np.arange(len(rows)) if places is None else places))
    return found


def pytorch_fids(rows, reference):
    a, b = rows.astype(np.float64), reference.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calculate_frechet_distance(
            a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
        )


@pytest.mark.parametrize(("n", "d"), [(200, 16), (600, 64), (40, 64)])
def test_21_distances_are_pytorch_fids_of_all_rows_and_without_each_group(n, d):
    rows, reference = features(n, d, seed=1), features(500, d, seed=2)
    found = frechet_values(moments_of(rows), FrechetRoot(Statistics.of(reference)))
    held = groups(np.arange(n))
    without = [pytorch_fids(rows[held != group], reference) for group in range(GROUPS)]
    assert found == pytest.approx([pytorch_fids(rows, reference), *without], rel=1e-5)


def test_reference_of_fewer_pictures_than_dimensions_is_no_special_case():
    rows, reference = features(300, 48, seed=1), features(30, 48, seed=2)
    distance = FrechetRoot(Statistics.of(reference)).distance(Statistics.of(rows))
    assert distance == pytest.approx(pytorch_fids(rows, reference), rel=1e-5)


def test_reference_of_one_picture_again_and_again_is_as_far_as_variance_and_means():
    root = FrechetRoot(Statistics(None, np.array([1.0, 0.0]), np.zeros((2, 2))))
    set_ = Statistics(None, np.array([4.0, 0.0]), np.diag([2.0, 3.0]))
    assert root.distance(set_) == pytest.approx(9 + 2 + 3)


def test_distance_to_itself_is_nothing():
    statistics = Statistics.of(features(200, 16))
    assert FrechetRoot(statistics).distance(statistics) == pytest.approx(0, abs=1e-9)


def test_dimensions_that_differ_are_refused():
    with pytest.raises(UserError, match="16 and of 8 dimensions"):
        FrechetRoot(Statistics.of(features(20, 8))).distance(Statistics.of(features(20, 16)))


def test_one_picture_that_remains_has_no_distance():
    rows = features(2, 4)
    with pytest.raises(UserError, match="needs at least two usable images"):
        frechet_values(moments_of(rows), FrechetRoot(Statistics.of(features(20, 4))))


def test_moments_hold_count_mean_and_scatter():
    found = statistics(moments_of(np.array([[1.0, 2.0], [3.0, 6.0]])).total())
    assert found.count == 2
    assert found.mean.tolist() == [2, 4]
    assert found.scatter.tolist() == [[2, 4], [4, 8]]


def test_moments_add_up_in_any_order_and_are_stored_as_they_are():
    rows = features(1200, 8)
    whole, left, right = (
        moments_of(rows, None),
        moments_of(rows[:700], np.arange(700)),
        moments_of(rows[700:], np.arange(700, 1200)),
    )
    right.merge(left)
    assert right.group_counts.tolist() == whole.group_counts.tolist() == [60] * GROUPS
    np.testing.assert_allclose(right.save(), whole.save(), rtol=1e-12)
    again = Moments.load(right.save(), 8)
    np.testing.assert_array_equal(again.save(), right.save())


def test_distances_without_some_pictures_are_those_of_the_others():
    rows, root = features(400, 8), FrechetRoot(Statistics.of(features(300, 8, seed=2)))
    places = np.arange(400)
    others = moments_of(rows[30:], places[30:])
    found = frechet_values(moments_of(rows), root, moments_of(rows[:30], places[:30]))
    assert found == pytest.approx(frechet_values(others, root), rel=1e-6)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        moments_of(np.array([[1.0, np.nan]]))


def test_packed_moments_are_as_before_when_they_are_asked_for():
    found, before = moments_of(features(100, 8)), moments_of(features(100, 8))
    found.pack()
    assert found.count == 100
    np.testing.assert_array_equal(found.save(), before.save())
    found.pack()
    found.add(features(50, 8, seed=3), groups(np.arange(50)))
    before.add(features(50, 8, seed=3), groups(np.arange(50)))
    np.testing.assert_array_equal(found.total(), before.total())
