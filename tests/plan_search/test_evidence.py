"""Evidence of a plan's losses, with answers by hand."""

import numpy as np
import pytest

from tgate_batch.plan_search.evidence import (
    Limit,
    count_failures_as_lost,
    score_error,
    standard_errors_below,
)

POINTS = Limit("prompt_accuracy", 0.02, yes_no=True)
SCORE = Limit("clip_score", 0.5, yes_no=False)


def test_at_a_limit_of_0_the_score_test_is_mcnemars():
    assert score_error(100, 9, 7, 0.0) == pytest.approx(4 / 100)  # sqrt(9 + 7) / 100
    losses = np.repeat([1.0, -1.0, 0.0], [7, 9, 84])
    assert standard_errors_below(losses, Limit("x", 0.0, True)) == pytest.approx(2 / 4)


def test_without_a_change_the_score_test_has_the_limits_own_variance():
    losses = np.zeros(400)
    assert standard_errors_below(losses, POINTS) == pytest.approx(0.02 / np.sqrt(0.02 * 0.98 / 400))


def test_score_error_is_that_of_the_most_likely_shares_at_the_limit():
    n, lost, gained, at = 200, 12, 6, 0.02
    shares = np.linspace(1e-6, 0.4, 400_001)  # of gained prompts; lost ones are `at` more
    likelihood = (
        lost * np.log(shares + at)
        + gained * np.log(shares)
        + (n - lost - gained) * np.log(1 - 2 * shares - at)
    )
    share = shares[likelihood.argmax()]
    assert score_error(n, lost, gained, at) == pytest.approx(
        np.sqrt((2 * share + at - at**2) / n), rel=1e-4
    )


def test_a_symmetric_score_is_judged_by_students_t():
    losses = np.array([0.0, 1.0, -1.0, 2.0, -2.0] * 20)
    error = losses.std(ddof=1) / np.sqrt(100)
    assert standard_errors_below(losses, SCORE) == pytest.approx(0.5 / error)


def test_a_few_large_losses_count_against_a_plan():
    """Both samples have the same mean and spread; the one with rare large losses shows less."""
    rare = np.repeat([0.0, 10.0], [99, 1]) - 0.1
    usual = -rare
    assert standard_errors_below(rare, SCORE) < standard_errors_below(usual, SCORE)


def test_a_missing_image_counts_as_lost():
    (losses,) = count_failures_as_lost([np.array([0.0, np.nan, -1.0])], POINTS)
    assert losses.tolist() == [0, 1, -1]


def test_a_missing_image_of_a_score_counts_as_the_largest_loss_of_any_plan():
    first, second = count_failures_as_lost([np.array([0.2, np.nan]), np.array([0.1, 4.0])], SCORE)
    assert first.tolist() == [0.2, 4.0]
    assert second.tolist() == [0.1, 4.0]


def test_a_plan_without_any_image_breaks_the_limit():
    (losses,) = count_failures_as_lost([np.full(60, np.nan)], SCORE)
    assert losses.tolist() == [1.0] * 60  # twice the limit
    assert standard_errors_below(losses, SCORE) < -1000
