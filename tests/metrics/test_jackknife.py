import numpy as np
import pytest

from tgate_batch.metrics.jackknife import (
    GROUPS,
    LEAST_PROMPTS,
    ONE_SIDED,
    TWO_SIDED,
    Estimate,
    bonett_price,
    estimate,
    groups,
    leave_one_out,
    paired_shares,
    prompts_needed,
    ratios,
)


def test_each_twenty_places_have_each_group_once():
    found = groups(np.arange(200)).reshape(-1, GROUPS)
    assert (np.sort(found, axis=1) == np.arange(GROUPS)).all()
    assert len({tuple(block) for block in found}) == 10


def test_group_of_a_place_does_not_depend_on_the_others():
    every = groups(np.arange(1000))
    some = np.array([999, 3, 500, 3])
    assert groups(some).tolist() == every[some].tolist()
    assert groups(np.empty(0, int)).tolist() == []


def test_groups_are_the_same_in_every_version():
    # else sums that are stored would mix with others
    assert groups(np.arange(5)).tolist() == [12, 0, 14, 19, 4]


def test_sums_without_a_group_are_all_less_its_own():
    found = leave_one_out(np.arange(20.0))
    assert found[0] == 190
    assert found[1:].tolist() == [190 - group for group in range(20)]


def test_mean_has_its_own_standard_error_and_no_bias():
    # twenty groups of one image: the textbook's standard error of a mean
    values = np.random.default_rng(0).normal(size=20)
    found = estimate(ratios(values, np.ones(20)))
    error = values.std(ddof=1) / 20**0.5
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(error)
    assert found.high - found.value == pytest.approx(TWO_SIDED * error)
    assert found.value - found.lower_bound == pytest.approx(ONE_SIDED * error)
    assert found.upper_bound - found.value == pytest.approx(ONE_SIDED * error)


def test_bias_that_falls_with_the_count_is_taken_away():
    # a figure 5 + 100 / n of n = 400 images, 20 a group
    assert estimate(np.array([5 + 100 / 400, *[5 + 100 / 380] * 20])).value == pytest.approx(5)


def test_ratio_of_nothing_is_not_a_number():
    assert np.isnan(ratios(np.zeros(20), np.zeros(20))).all()


def test_share_with_one_added_to_each_discordant_count():
    # Bonett and Price: (9 + 1) / 102 and (3 + 1) / 102
    up, down = 10 / 102, 4 / 102
    half = 1.96 * ((up + down - (up - down) ** 2) / 102) ** 0.5
    found = bonett_price(100, gained=9, lost=3)
    assert found.value == pytest.approx(0.06)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half))


def test_nothing_changed_and_the_interval_has_a_width():
    found = paired_shares(np.full(20, 10.0), np.zeros(20), np.zeros(20))
    assert found.value == 0
    assert found.low < 0 < found.high


def test_pictures_of_a_prompt_that_change_together_make_the_interval_wider():
    count, spread = np.full(20, 80.0), np.full(20, 2.0)
    together = np.array([40.0] + [0.0] * 19)
    apart = paired_shares(count, spread, np.zeros(20))
    one = paired_shares(count, together, np.zeros(20))
    assert one.value == apart.value == pytest.approx(40 / 1600)
    assert one.high - one.low > 2 * (apart.high - apart.low)


def test_half_the_difference_needs_four_times_the_prompts():
    found = [prompts_needed(200, 0.1, difference) for difference in (0.2, -0.2, 0.1)]
    # (1.729 + 1.328)^2 * .1^2 / .2^2 * 200, and 1.385 times as many for the pilot's own error
    assert found == [648, 648, 2589]


def test_no_interval_is_planned_below_the_fewest_prompts():
    assert prompts_needed(200, 0.01, 1.0) == LEAST_PROMPTS


def test_difference_of_nothing_cannot_be_planned():
    with pytest.raises(ValueError, match="difference of 0"):
        prompts_needed(200, 0.1, 0)


def test_bounds_are_within_the_interval():
    found = Estimate(1.0, 0.0, 2.0)
    assert found.low < found.lower_bound < found.value < found.upper_bound < found.high
