import warnings

import numpy as np
import pytest
from pytorch_fid.fid_score import calculate_frechet_distance

from tgate_batch.errors import UserError
from tgate_batch.metrics.frechet import Statistics, frechet_distance, rank_deficient, stream


def features(n, d, seed=0):
    """Correlated, with means far from zero, and unequal spreads over four decades."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * np.logspace(0, -4, d)[:, None]
    return (rng.normal(size=(n, d)) @ mix + 10).astype(np.float32)


def gaussian(mean, covariance):
    return Statistics(None, np.asarray(mean, float), np.asarray(covariance, float))


def test_a_set_is_at_no_distance_from_itself():
    statistics = Statistics.of(features(200, 16))
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-9)


def test_fid_of_shifted_set_is_squared_shift():
    rows = features(500, 16).astype(np.float64)
    shift = np.arange(16.0)
    distance = frechet_distance(Statistics.of(rows), Statistics.of(rows + shift))
    assert distance == pytest.approx(shift @ shift, rel=1e-9)


def test_distance_of_two_normals_on_a_line():
    # (3 - 1)^2 + (2 - 5)^2: means 3 and 1, standard deviations 2 and 5
    assert frechet_distance(gaussian([3], [[4]]), gaussian([1], [[25]])) == pytest.approx(13)


def test_axes_that_commute_add_up():
    a, b = gaussian([0, 0, 0], np.diag([1, 4, 0])), gaussian([0, 0, 2], np.diag([9, 4, 1]))
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + 0 + 2**2 + 1)


def test_sets_that_share_no_direction_have_their_variances_as_distance():
    a, b = gaussian([0, 0], np.diag([7, 0])), gaussian([0, 0], np.diag([0, 5]))
    assert frechet_distance(a, b) == pytest.approx(12)


def test_two_constant_sets_are_as_far_as_their_means():
    a, b = Statistics.of(np.zeros((5, 3))), Statistics.of(np.full((5, 3), 2.0))
    assert frechet_distance(a, b) == pytest.approx(12)


@pytest.mark.parametrize(("n", "d"), [(500, 64), (300, 128), (40, 64)])
def test_distance_is_pytorch_fids(n, d):
    a, b = features(n, d, seed=1).astype(float), features(n, d, seed=2).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = calculate_frechet_distance(
            a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
        )
    assert frechet_distance(Statistics.of(a), Statistics.of(b)) == pytest.approx(reference, 1e-6)


@pytest.mark.parametrize("n", [2000, 60])
def test_distance_does_not_depend_on_how_the_set_is_cut(n):
    rows, other = features(n, 96, seed=3), Statistics.of(features(n, 96, seed=4))
    whole = frechet_distance(Statistics.of(rows), other)
    shards = np.array_split(rows, 50)
    for cut in (shards, shards[::-1]):
        assert frechet_distance(stream(cut), other) == pytest.approx(whole, rel=1e-9)
    left, right = (Statistics.of(half) for half in np.array_split(rows, 2))
    assert frechet_distance(left.merge(right), other) == pytest.approx(whole, rel=1e-9)
    assert frechet_distance(right.merge(left), other) == pytest.approx(whole, rel=1e-9)


def test_statistics_are_numpys():
    rows = features(2500, 8).astype(np.float64)
    statistics = Statistics.of(rows)
    np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(rows, rowvar=False), rtol=1e-10)
    assert statistics.count == 2500


def test_merging_an_empty_shard_changes_nothing():
    rows = features(20, 4)
    statistics = stream([rows[:0], rows, rows[:0]])
    np.testing.assert_array_equal(statistics.scatter, Statistics.of(rows).scatter)


@pytest.mark.parametrize(("count", "deficient"), [(16, True), (17, False)])
def test_fewer_images_than_dimensions_are_flagged(count, deficient):
    assert rank_deficient(Statistics.of(features(count, 16))) is deficient


def test_saved_statistics_come_back_and_pytorch_fid_finds_its_keys(tmp_path):
    statistics = Statistics.of(features(50, 8))
    statistics.save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    assert loaded.count == 50
    np.testing.assert_allclose(loaded.scatter, statistics.scatter, rtol=1e-12)
    with np.load(tmp_path / "s.npz") as archive:
        np.testing.assert_array_equal(archive["sigma"], statistics.covariance)
        np.testing.assert_array_equal(archive["mu"], statistics.mean)


def test_statistics_without_a_count_have_a_distance_but_no_merge(tmp_path):
    rows = features(50, 8).astype(np.float64)
    np.savez(tmp_path / "s.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    foreign = Statistics.load(tmp_path / "s.npz")
    assert foreign.count is None
    assert not rank_deficient(foreign)
    assert frechet_distance(foreign, Statistics.of(rows)) == pytest.approx(0, abs=1e-8)
    with pytest.raises(UserError, match="without a count"):
        foreign.merge(foreign)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"mu": np.zeros(3)}, "has no sigma"),
        ({"sigma": np.eye(3)}, "has no mu"),
        ({"features": np.eye(3)}, "has no mu and no sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu \[3\] and sigma \[4, 4\]"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
    ],
)
def test_statistics_files_that_are_none_say_so_in_one_line(tmp_path, arrays, line):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=line) as caught:
        Statistics.load(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_a_damaged_statistics_file_says_so_in_one_line(tmp_path, content):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as \.npz") as caught:
        Statistics.load(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


def test_other_dimensions_cannot_be_compared():
    with pytest.raises(UserError, match="8 and of 16 dimensions"):
        frechet_distance(Statistics.of(features(9, 8)), Statistics.of(features(9, 16)))


def test_no_images_have_no_statistics():
    with pytest.raises(UserError, match="no usable images"):
        stream([])
    with pytest.raises(UserError, match="no usable images"):
        stream([np.zeros((0, 8))])


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="two usable images, and there are 1"):
        frechet_distance(Statistics.of(features(1, 4)), Statistics.of(features(9, 4)))


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        Statistics.of(np.array([[1.0, np.nan]]))
