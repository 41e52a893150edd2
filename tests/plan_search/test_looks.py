"""Critical values of group-sequential tests, against simulated paths."""

import math

import numpy as np
import pytest

from tgate_batch.plan_search.looks import SHARES, critical_values


def test_a_single_look_needs_the_normal_quantile():
    assert critical_values(0.05, [1.0]) == pytest.approx([1.644854], abs=1e-6)


def test_the_first_look_spends_its_share_squared():
    z = critical_values(0.05, SHARES)[0]
    assert 0.5 * math.erfc(z / math.sqrt(2)) == pytest.approx(0.05 * 0.15**2)


@pytest.mark.parametrize("level", [0.05, 0.01])
def test_without_an_effect_some_look_passes_with_the_probability_of_the_level(level):
    steps = np.random.default_rng(0).standard_normal((400_000, len(SHARES)))
    paths = np.cumsum(steps * np.sqrt(np.diff([0.0, *SHARES])), axis=1) / np.sqrt(SHARES)
    passed = paths >= np.array(critical_values(level, SHARES))
    error = np.sqrt(level / 400_000)
    assert passed.any(axis=1).mean() == pytest.approx(level, abs=4 * error)
    for look, share in enumerate(SHARES):
        spent = passed[:, : look + 1].any(axis=1).mean()
        assert spent == pytest.approx(level * share**2, abs=4 * error)
