"""The schedules, against the reference's function and against what one can work out by hand."""

import subprocess
import sys
from itertools import product

import pytest
from tgate.tgate_utils import tgate_scheduler

from tgate_batch.gate import Action, DeepCache, GatePlan

COMPUTE, STORE, REUSE = Action.COMPUTE, Action.STORE, Action.REUSE
ACTION = {(False, False): COMPUTE, (True, False): STORE, (False, True): REUSE}
STEPS = range(25)
SETTINGS = list(product((1, 2, 3, 5, 8, 10, 13, 24, 25, 30), (1, 2, 3, 5, 7, 30), (1, 2, 3, 5, 30),
                        (0, 1, 2, 3, 5, 10, 26)))  # fmt: skip


def test_actions_equal_the_reference_at_every_point_of_the_grid():
    for settings in SETTINGS:
        plan = GatePlan(*settings)
        for step in STEPS:
            cross, self_, keep_shape = tgate_scheduler(step, *settings)
            ours = plan.actions(step)
            assert ours.cross is ACTION[cross["cache"], cross["reuse"]], (plan, step)
            assert ours.self_ is ACTION[self_["cache"], self_["reuse"]], (plan, step)
            assert ours.mean is not keep_shape, (plan, step)
            assert ours.guided is (step < plan.gate_step), (plan, step)
    assert len(SETTINGS) * len(STEPS) >= 50_000


@pytest.mark.parametrize("kind", ["cross", "self_"])
def test_schedule_stores_exactly_what_is_read(kind):
    for settings in SETTINGS:
        plan = GatePlan(*settings)
        actions = [getattr(plan.actions(step), kind) for step in STEPS]
        pruned = [getattr(step, kind) for step in plan.schedule(len(STEPS))]
        for step, action in enumerate(actions):
            if action is STORE:
                after = [later for later in actions[step + 1 :] if later is not COMPUTE]
                action = STORE if after[:1] == [REUSE] else COMPUTE
            assert pruned[step] is action, (plan, step)


def test_schedule_with_skipped_layers_keeps_every_store_before_a_reuse():
    plan = GatePlan(10, sp_interval=3, warm_up=1)
    stores = [step for step, now in enumerate(plan.schedule(25, skips=True)) if now.self_ is STORE]
    assert stores == [1, 3, 6]  # 9 computes for nobody: fi_interval=1 computes from the gate on


def test_documented_sdxl_plan_by_hand():
    """REFERENCE: gate 10, sp 5, warm-up 2: self-attention is computed at 0, 1, 2, 5 and 9."""
    schedule = GatePlan(10, 5, 1, 2).schedule(25)
    reused = [step for step, now in enumerate(schedule) if now.self_ is REUSE]
    assert reused == [3, 4, 6, 7, 8]
    assert [step for step, now in enumerate(schedule) if now.cross is STORE] == [9]
    assert [step for step, now in enumerate(schedule) if now.cross is REUSE] == list(range(10, 25))
    assert [step for step, now in enumerate(schedule) if now.guided] == list(range(10))


def test_gate_step_alone_is_cross_attention_only():
    schedule = GatePlan(5).schedule(25)
    assert {now.self_ for now in schedule} == {COMPUTE}


@pytest.mark.parametrize(
    "wrong",
    [
        {"gate_step": 0},
        {"gate_step": -3},
        {"gate_step": 2.5},
        {"gate_step": 0.0},
        {"gate_step": 1.0},
        {"gate_step": 0.4, "sp_interval": 0},
        {"gate_step": True},
        {"gate_step": "10"},
        {"gate_step": 5, "sp_interval": 0},
        {"gate_step": 5, "fi_interval": 0},
        {"gate_step": 5, "warm_up": -1},
    ],
)
def test_values_that_cannot_work_are_named(wrong):
    name, value = list(wrong.items())[-1]
    with pytest.raises(ValueError, match=f"^{name}={value!r} ") as error:
        GatePlan(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"branch": -1}, {"interval": 1.5}])
def test_deepcache_values_that_cannot_work_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r} "):
        DeepCache(**wrong)


@pytest.mark.parametrize(
    ("part", "steps", "step"),
    [(0.4, 25, 10), (0.4, 10, 4), (0.5, 1, 1), (0.01, 25, 1), (0.99, 25, 25)],
)
def test_a_part_of_the_steps_is_a_step_of_them(part, steps, step):
    plan = GatePlan(part, 5, 1, 2)
    assert plan.at(steps) == GatePlan(step, 5, 1, 2)
    assert plan.schedule(steps) == GatePlan(step, 5, 1, 2).schedule(steps)
    assert GatePlan(10).at(steps) == GatePlan(10)


def test_gate_beyond_the_steps_is_refused():
    GatePlan(25).check(25)
    with pytest.raises(ValueError, match=r"^gate_step=26 is beyond the 25 steps"):
        GatePlan(26).check(25)


def test_plan_loads_neither_torch_nor_diffusers():
    script = (
        "import sys; from tgate_batch.gate import GatePlan; "
        "print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
