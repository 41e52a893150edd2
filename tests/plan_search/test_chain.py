"""The chain of plans and its fallback procedure, by hand."""

import numpy as np
import pytest

from tgate_batch.plan_search.chain import accepted, choose_chain


def levels(chain, passing, error=0.1):
    """What is accepted if the plans in ``passing`` pass at their level or a larger one."""
    return accepted(chain, error, lambda plan, level: level >= passing.get(plan, 1.0) - 1e-12)


def test_a_single_plan_has_the_whole_error():
    assert levels([4], {4: 0.1}) == {4: pytest.approx(0.1)}
    assert levels([4], {4: 0.11}) == {}


def test_an_accepted_plan_hands_its_level_on():
    assert levels([0, 1], {0: 0.07, 1: 0.1}) == {0: pytest.approx(0.075), 1: pytest.approx(0.1)}


def test_a_plan_after_one_that_fails_has_its_own_share_alone():
    assert levels([0, 1], {0: 0.08, 1: 0.025}) == {1: pytest.approx(0.025)}
    assert levels([0, 1], {0: 0.08, 1: 0.03}) == {}


def test_the_chain_is_worth_the_integral_of_the_largest_saving():
    chain, worth = choose_chain(np.array([0.2, 0.5]), np.array([0.9, 0.4]))
    assert chain == [0, 1]
    assert worth == pytest.approx(0.5 * 0.4 + 0.2 * (0.9 - 0.4))


def test_a_plan_that_another_beats_in_both_is_not_in_the_chain():
    chain, _ = choose_chain(np.array([0.5, 0.4, 0.6]), np.array([0.8, 0.7, 0.3]))
    assert chain == [0, 2]


def test_the_chain_has_at_most_six_plans():
    savings = np.linspace(0.1, 0.9, 20)
    chain, _ = choose_chain(savings, 1 - savings)
    assert len(chain) == 6
    assert chain == sorted(chain)  # the safest plan, which saves least, is first
