import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from tgate_batch.metrics.kid import kid, squared_mmd


def rows(n, d, seed, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(20, 8), (50, 64)])
def test_mmd_is_torchmetrics_on_the_same_features(n, d):
    a, b = rows(n, d, 0).astype(float), rows(n, d, 1, shift=0.5).astype(float)
    expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert squared_mmd(a, b) == pytest.approx(expected, rel=1e-9)


def test_kid_of_whole_sets_is_torchmetrics_without_spread():
    a, b = rows(30, 8, 2), rows(30, 8, 3, shift=1.0)
    found = kid(a, b, subsets=4, subset_size=30)
    expected = poly_mmd(torch.from_numpy(a).double(), torch.from_numpy(b).double()).item()
    assert found.mean == pytest.approx(expected, rel=1e-9)
    assert found.spread == pytest.approx(0, abs=1e-9)
    assert found.subset_size == 30


def test_mmd_of_two_pairs_on_a_line():
    # kernel (x y + 1)^3: of 0 with 0 and 0 with 1 it is 1; of 1 with 1 it is 8
    assert squared_mmd(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]])) == 1 + 8 - 2


def test_kid_is_unbiased_for_few_pictures():
    values = [squared_mmd(rows(5, 4, n), rows(5, 4, n + 10_000)) for n in range(4000)]
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / 4000**0.5)


def test_kid_grows_with_the_shift():
    a = rows(200, 8, 0)
    found = [kid(a, rows(200, 8, 1, shift), subsets=5, subset_size=100).mean for shift in (0, 1, 2)]
    assert found == sorted(found)


def test_subsets_do_not_change_with_the_run():
    a, b = rows(50, 4, 0), rows(50, 4, 1)
    assert kid(a, b, subset_size=10) == kid(a, b, subset_size=10)
    assert kid(a, b, subset_size=10) != kid(a, b, subset_size=10, seed=1)


def test_few_pictures_are_halved_so_that_the_spread_says_something():
    found = kid(rows(30, 8, 2), rows(40, 8, 3), subset_size=1000)
    assert found.subset_size == 15
    assert found.spread > 0


def test_three_pictures_have_no_kid():
    assert kid(rows(3, 4, 0), rows(9, 4, 1)) is None
