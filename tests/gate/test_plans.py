"""Every kind of plan draws what the loop by hand draws, in float64."""

import random

import oracle
import pytest
from cases import KIN, TEXT, Call, Cases
from plans_oracle import Loop, Setting

from tgate_batch.gate import (
    Forecast,
    GatePlan,
    GuidanceInterval,
    Plan,
    SelfAttentionInterval,
    combined,
    gated,
)

CLOSE = 1e-7  # of the largest latent
pytestmark = pytest.mark.filterwarnings(
    "ignore::tgate_batch.gate.GateNotReached", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def cases():
    return Cases()


def plan_of(setting: Setting, scale: float) -> Plan:
    """The plan that a setting describes."""
    guidance = None
    if setting.first or setting.until is not None or setting.weights:
        guidance = GuidanceInterval(
            setting.first,
            setting.until,
            "reuse" if setting.reuse else "none",
            setting.every,
            setting.weights,
            scale if setting.weights else None,
        )
    return combined(
        setting.gate and GatePlan(*setting.gate),
        guidance,
        setting.interval and SelfAttentionInterval(setting.interval, setting.warm_up),
        Forecast(setting.forecast, order=setting.order) if setting.forecast else None,
    )


def is_guided(call: Call) -> bool:
    return oracle._is_guided(call.pipe, call.case)


def check(call: Call, setting: Setting) -> None:
    with gated(call.pipe, plan_of(setting, call.case.guidance), guided=is_guided(call)):
        found = call.run()
    expected = Loop(call.pipe, call.case, setting).draw()
    assert found.isfinite().all()
    apart = float((found - expected).abs().max() / expected.abs().max())
    assert apart < CLOSE, (setting, call.words)


def random_setting(chance: random.Random, steps: int, guided: bool) -> Setting:
    """A composition of kinds that has a meaning."""
    made: dict = {}
    kind = chance.choice(["gate", "guidance", "guidance", "weights", "none"])
    if kind == "gate":
        made["gate"] = tuple(chance.randint(1, high) for high in (steps, 3, 3, 3))
    elif kind == "guidance":
        made["first"] = chance.choice([0, 0, 0, 1, 2])
        made["until"] = made["first"] + chance.randint(1, 3)
        made["reuse"] = chance.random() < 0.7
        made["every"] = chance.choice([None, 2, 3]) if made["reuse"] else None
    elif kind == "weights" and guided:
        made["weights"] = tuple(chance.choice([1.0, 2.0, 7.5, 9.0]) for _ in range(steps))
    if kind != "gate" and chance.random() < 0.4:
        made |= {"interval": chance.randint(2, 3), "warm_up": chance.randint(0, 2)}
    if chance.random() < 0.6 or kind == "none":
        made["forecast"] = tuple(step for step in range(1, steps) if chance.random() < 0.4) or (1,)
        made["order"] = chance.randint(0, 2)
    return Setting(**made)


def few_or_many(few: int, many: int):
    slow = pytest.param(many, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])
    return pytest.mark.parametrize("count", [pytest.param(few, id="few"), slow])


@few_or_many(24, 500)
def test_random_plans_draw_what_the_loop_by_hand_draws(cases, count):
    chance = random.Random(count)
    for _ in range(count):
        call = cases.random(chance, TEXT)
        check(call, random_setting(chance, call.case.steps, is_guided(call)))


@few_or_many(3, 60)
@pytest.mark.parametrize("name", KIN)
def test_random_plans_of_the_newer_families(cases, name, count):
    chance = random.Random(name)
    for _ in range(count):
        call = cases.random(chance, [name])
        check(call, random_setting(chance, call.case.steps, is_guided(call)))
