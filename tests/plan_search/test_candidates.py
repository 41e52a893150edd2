"""The plans that are searched by default."""

import numpy as np
import pytest

from tgate_batch.config import Arm
from tgate_batch.plan_search.candidates import (
    FAMILIES,
    MOST,
    candidates,
    describe,
    features_of,
    name_of,
    thin,
)


@pytest.mark.parametrize("steps", [4, 8, 25, 50])
def test_each_candidate_is_another_arm_with_a_name_of_its_own(steps):
    arms = candidates(steps, FAMILIES)
    assert len({str(arm.settings) for arm in arms}) == len(arms)
    assert len({name_of(arm) for arm in arms}) == len(arms)
    assert not any(arm.is_baseline for arm in arms)


def test_a_family_alone_gives_its_plans_alone():
    assert all(arm.steps is not None for arm in candidates(25, ["steps"]))
    assert {name_of(arm) for arm in candidates(25, ["deepcache"])} == {
        "deepcache-2",
        "deepcache-3",
        "deepcache-5",
    }


def test_two_families_are_combined():
    names = {name_of(arm) for arm in candidates(25, ["steps", "guidance"])}
    assert {"steps-15", "guidance-12", "steps-15-guidance-6"} <= names


def test_a_gate_and_ended_guidance_are_not_combined():
    arms = candidates(25, ["gate", "guidance"])
    assert not any(arm.plan and arm.guidance for arm in arms)


@pytest.mark.parametrize(
    ("arm", "name", "words"),
    [
        (Arm(guidance_until=12), "guidance-12", "guidance until step 12"),
        (Arm(steps=15, gate_step=6), "steps-15-gate-6", "15 steps, gate at step 6"),
        (
            Arm(deepcache={"interval": 3, "branch": 0}),
            "deepcache-3",
            "DeepCache every 3 steps",
        ),
        (Arm(gate_step=0.4), "gate-0.4", "gate at 0.4 of the steps"),
        (
            Arm(guidance={"until": 5, "then": "reuse", "every": 3}),
            "guidance-5-then-reuse-every-3",
            "guidance until step 5, then its difference reused, refreshed every 3 steps",
        ),
        (
            Arm(forecast={"first": 10, "every": 2}),
            "forecast-10-every-2",
            "forecasts from step 10, computed every 2 steps",
        ),
    ],
)
def test_an_arm_has_a_name_and_words(arm, name, words):
    assert name_of(arm) == name
    assert describe(arm) == words


def test_features_are_the_parts_that_are_computed():
    """Guided steps, late guidance, cross-attention, self-attention, steps."""
    found = features_of(Arm(gate_step=10), 25)[:5]
    assert found == pytest.approx([0.4, 0, 0.2, 0.5, 1])
    found = features_of(Arm(steps=10, guidance_until=5), 25)[:5]
    assert found == pytest.approx([0.5, 0, 0.5, 0.5, 0.4])
    assert features_of(Arm(), 25)[:5] == pytest.approx([1, 0, 0.5, 0.5, 1])
    forecast = features_of(Arm(forecast={"steps": [10, 12]}), 25)
    assert forecast[:7] == pytest.approx([1, 0, 0.5, 0.5, 1, 1, 0.92])  # 23 of 25 steps run
    deep = features_of(Arm(deepcache={"interval": 4, "branch": 0}), 25)
    assert sum(features_of(Arm(), 25) - deep) == pytest.approx(0.75)  # 1 - 1 / 4


def test_thinning_removes_one_of_two_that_are_alike():
    features = np.array([[0.0], [0.5], [0.51], [1.0]])
    assert thin([Arm()] * 4, features, 3) == [0, 1, 3]
    assert thin([Arm()] * 4, features, 4) == [0, 1, 2, 3]


def test_the_default_plans_are_about_40():
    arms = candidates(25, ["steps", "gate", "guidance", "deepcache"])
    kept = thin(arms, np.array([features_of(arm, 25) for arm in arms]))
    assert len(kept) == MOST == 40
    assert {"steps-10-guidance-5", "steps-15-gate-6", "gate-10"} <= {
        name_of(arms[place]) for place in kept
    }
