import numpy as np
import pytest

from tgate_batch.errors import UserError
from tgate_batch.metrics.frechet import Statistics, frechet_distance
from tgate_batch.metrics.intervals import (
    frechet_extrapolation,
    frechet_interval,
    mean_interval,
    paired_interval,
)


def normal(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def ideal(d):
    """The standard normal itself."""
    return Statistics(None, np.zeros(d), np.eye(d))


@pytest.mark.parametrize(("n", "d"), [(200, 8), (20, 64)])
def test_value_is_the_distance_itself(n, d):
    rows, reference = normal(n, d, 0), Statistics.of(normal(100, d, 1, shift=0.3))
    interval = frechet_interval(rows, reference, replicates=10)
    assert interval.value == pytest.approx(frechet_distance(Statistics.of(rows), reference), 1e-7)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize(("n", "d"), [(30, 6), (12, 40)])
def test_replicates_are_distances_of_resampled_rows(n, d):
    from tgate_batch.metrics.intervals import _Resampled

    rows, reference = normal(n, d, 2), Statistics.of(normal(50, d, 3))
    drawn = np.random.default_rng(0).integers(n, size=n)
    expected = frechet_distance(Statistics.of(rows[drawn]), reference)
    found = _Resampled(rows, reference)(np.bincount(drawn, minlength=n))
    assert found == pytest.approx(expected, rel=1e-6)


def test_interval_of_a_shifted_line_is_the_textbook_one():
    # distance (m - 3)^2 + (s - 1)^2 near m = 0, s = 1: its standard error is 6 / sqrt(n)
    interval = frechet_interval(normal(2000, 1, 4), _at(3.0), replicates=400)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 6 / 2000**0.5, rel=0.15)


def _at(mean):
    return Statistics(None, np.array([mean]), np.eye(1))


def test_extrapolation_removes_the_bias_of_few_pictures():
    found = frechet_extrapolation(normal(1200, 16, 5), ideal(16))
    assert found.counts == (1200, 600, 300)
    assert found.distances[0] < found.distances[1] < found.distances[2]
    assert abs(found.infinite) < found.distances[0] / 4


def test_extrapolation_is_the_line_through_its_points():
    found = frechet_extrapolation(normal(80, 4, 6), ideal(4))
    slope, intercept = np.polyfit([1 / n for n in found.counts], found.distances, 1)
    assert found.infinite == pytest.approx(intercept)
    assert slope > 0


@pytest.mark.parametrize(("n", "job"), [(7, frechet_extrapolation), (1, frechet_interval)])
def test_too_few_pictures_say_so(n, job):
    with pytest.raises(UserError, match=f"{n} usable image"):
        job(normal(n, 4, 0), ideal(4))


def test_other_dimensions_cannot_be_compared():
    with pytest.raises(UserError, match="4 and of 8 dimensions"):
        frechet_interval(normal(9, 4, 0), ideal(8))


def test_equal_values_have_no_difference():
    values = np.random.default_rng(0).random(50)
    interval = paired_interval(values, values)
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_a_constant_gain_is_certain_however_far_values_spread():
    values = np.random.default_rng(0).normal(size=50) * 100
    interval = paired_interval(values + 2, values)
    assert interval.low == pytest.approx(2)
    assert interval.high == pytest.approx(2)


def test_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(1).normal(size=4000) * 3
    interval = mean_interval(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 3 / 4000**0.5, rel=0.1)
    assert interval.value == pytest.approx(values.mean())


def test_pairs_with_a_missing_number_are_left_out():
    interval = paired_interval([1, 2, np.nan, 5], [0, 1, 7, np.nan])
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan]])
def test_a_single_pair_has_no_interval(values):
    assert mean_interval(values) is None
