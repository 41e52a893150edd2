import numpy as np
import pytest

from tgate_batch.metrics.throughput import Batches, histogram, quantile


def batches(batch, seconds, warm_up=None):
    seconds = np.array(seconds, float)
    warm_up = np.zeros(len(batch), bool) if warm_up is None else np.array(warm_up)
    return Batches.of(np.array(batch), seconds, 0.9 * seconds, 0.1 * seconds, warm_up)


def test_rows_of_one_batch_count_its_seconds_once():
    found = batches([0, 0, 0, 1], [3, 3, 3, 1])
    assert found.images.tolist() == [3, 1]
    assert found.seconds.tolist() == [3, 1]
    assert found.first_row.tolist() == [0, 3]


def test_row_that_was_not_delivered_is_no_image_of_its_batch():
    assert batches([0, -1, 0], [2, np.nan, 2]).images.tolist() == [2]


def test_rows_without_a_batch_are_none():
    assert len(batches([-1, -1], [np.nan, np.nan]).seconds) == 0


def test_batches_stand_in_the_order_of_their_rows():
    found = batches([5, 5, 2, 2], [1, 1, 4, 4], [True, True, False, False])
    assert found.seconds.tolist() == [1, 4]
    assert found.warm_up.tolist() == [True, False]


def test_quantile_of_a_histogram_is_within_a_seventh_of_a_percent():
    seconds = np.array([0.5] * 94 + [7.0] * 6)
    counts = histogram(seconds)
    assert quantile(counts, 0.5) == pytest.approx(0.5, rel=0.0014)
    assert quantile(counts, 0.95) == pytest.approx(7, rel=0.0014)


def test_histograms_add_up():
    a, b = np.array([0.1, 0.2]), np.array([0.3, 4000.0])
    assert (histogram(a) + histogram(b) == histogram(np.concatenate([a, b]))).all()


def test_histogram_takes_any_number_of_seconds():
    assert histogram(np.array([0.0, 1e-9, 1e9])).sum() == 3


def test_no_batch_has_no_quantile():
    assert quantile(histogram(np.empty(0)), 0.5) is None
