import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from tgate_batch.metrics.jackknife import GROUPS, groups
from tgate_batch.metrics.kid import kernel_sums, mean_of_pairs, polynomial


def rows(n, d, seed, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32)


def values(a, b, prompts=None, held=None):
    count = np.arange(len(a))
    held = groups(count) if held is None else held
    return kernel_sums(a, held, count if prompts is None else prompts, b).values()


def torchmetrics_mmd(a, b):
    return poly_mmd(torch.from_numpy(a).double(), torch.from_numpy(b).double()).item()


@pytest.mark.parametrize(("n", "d"), [(60, 8), (50, 64), (1100, 4)])
def test_mmd_is_torchmetrics_of_all_rows_and_without_each_group(n, d):
    a, b = rows(n, d, 0), rows(n, d, 1, shift=0.5)
    held, found = groups(np.arange(n)), values(a, b)
    assert found[0] == pytest.approx(torchmetrics_mmd(a, b), rel=1e-9)
    for group in (0, GROUPS - 1):
        left = a[held != group]
        cross = polynomial(left.astype(float), b.astype(float)).mean()
        expected = mean_of_pairs(left) - 2 * cross + mean_of_pairs(b)
        assert found[1 + group] == pytest.approx(expected, rel=1e-9)


def test_mmd_of_two_pairs_on_a_line():
    # kernel (x y + 1)^3: of 0 with 0 and 0 with 1 it is 1; of 1 with 1 it is 8
    a, b = np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]])
    sums = kernel_sums(a, np.array([0, 1]), np.array([0, 1]), b)
    assert sums.pairs.sum() == 2 * 1
    assert sums.pair_counts.sum() == 2
    assert sums.cross.sum() == 4 * 1
    assert sums.within == 8


def test_pairs_of_pictures_of_one_prompt_are_left_out():
    # two prompts of two equal images each: what is left are pairs of 0 with 1
    a, prompts = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([5, 5, 9, 9])
    sums = kernel_sums(a, np.array([0, 0, 1, 1]), prompts, np.zeros((2, 1)))
    assert sums.pair_counts.sum() == 8
    assert sums.pairs.sum() == 8 * 1


def test_one_prompt_has_no_pair_and_no_distance():
    assert values(rows(40, 4, 0), rows(9, 4, 1), prompts=np.zeros(40)) is None


def test_reference_of_one_picture_has_no_distance():
    assert values(rows(60, 4, 0), rows(1, 4, 1)) is None


def test_kid_is_unbiased_for_few_pictures():
    found = [values(rows(40, 4, n), rows(5, 4, n + 10_000))[0] for n in range(1000)]
    assert np.mean(found) == pytest.approx(0, abs=4 * np.std(found) / 1000**0.5)


def test_kid_grows_with_the_shift():
    a = rows(200, 8, 0)
    found = [values(a, rows(200, 8, 1, shift))[0] for shift in (0, 1, 2)]
    assert found == sorted(found)


def test_order_of_pictures_changes_nothing():
    a, b, order = rows(60, 4, 0), rows(30, 4, 1), np.random.default_rng(2).permutation(60)
    held, prompts = groups(np.arange(60)), np.arange(60)
    shuffled = values(a[order], b, prompts[order], held[order])
    assert shuffled == pytest.approx(values(a, b), rel=1e-9)
