"""The belief of plans' losses."""

import numpy as np
import pytest

from tgate_batch.plan_search.belief import Prior

FEATURES = np.linspace(0, 1, 11)[:, None]  # the baseline is at 1, and plan 10 is like it
ORIGIN = np.array([1.0])


def losses(plan, prompts, seed=0):
    rng = np.random.default_rng([seed, plan])
    return rng.normal(0.1 * (1 - FEATURES[plan, 0]), 0.1, prompts)


def test_many_losses_outweigh_the_prior():
    belief = Prior(FEATURES, ORIGIN).given({plan: losses(plan, 20_000) for plan in range(11)})
    assert belief.mean == pytest.approx(0.1 * (1 - FEATURES[:, 0]), abs=0.003)
    assert (belief.sd < 0.003).all()
    assert belief.variance == pytest.approx(0.01, rel=0.1)


def test_plans_without_losses_are_believed_like_their_neighbours():
    seen = {plan: losses(plan, 2000) for plan in (0, 2, 4, 6, 8)}
    belief = Prior(FEATURES, ORIGIN).given(seen)
    assert belief.mean[[1, 3, 5, 7]] == pytest.approx([0.09, 0.07, 0.05, 0.03], abs=0.01)
    assert (belief.sd[[1, 3, 5, 7]] > belief.sd[[0, 2, 4, 6]]).all()


def test_the_baseline_loses_nothing():
    belief = Prior(FEATURES, ORIGIN).given({plan: losses(plan, 2000) for plan in (0, 4)})
    assert abs(belief.mean[10]) < 0.02


def test_the_chance_of_a_plan_at_the_limit_is_small_and_of_a_harmless_plan_large():
    belief = Prior(FEATURES, ORIGIN).given({plan: losses(plan, 20_000) for plan in range(11)})
    chances = belief.chances(0.05, 1000)
    assert chances[5] < 0.1  # its loss is the limit
    assert chances[10] > 0.99
    assert (belief.hopes(0.05, 1000) >= chances - 1e-12)[:5].all()
