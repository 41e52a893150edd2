"""Every kind of plan renders what the loop by hand renders, in float64."""

import random

import oracle
import pytest
import torch
from cases import KIN, TEXT, Call, Cases
from plans_oracle import Loop, Setting

from tgate_batch.gate import (
    Forecast,
    GatePlan,
    GuidanceInterval,
    Plan,
    SelfAttentionInterval,
    cache_bytes,
    combined,
    gated,
)
from tgate_batch.gate.pipeline import tracked

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
        latents = call.run()
    expected = Loop(call.pipe, call.case, setting).render()
    assert latents.isfinite().all()
    apart = float((latents - expected).abs().max() / expected.abs().max())
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
def test_random_plans_render_what_the_loop_by_hand_renders(cases, count):
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


PLANS = [
    GuidanceInterval(0, 2, "reuse", every=2),
    GuidanceInterval(weights=(7.5, 3.0), scale=7.5),
    combined(GuidanceInterval(0, 3), SelfAttentionInterval(2)),
    combined(GatePlan(3, 2), Forecast((2, 4))),
    Forecast((2, 3, 5), order=2),
]


@pytest.mark.parametrize("name", ["sdxl", "wan21"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_after_the_block_the_pipeline_is_plain_and_a_second_call_equals_the_first(
    cases, name, plan
):
    call = cases.call(name, batch=2)
    plain = call.run()
    with tracked(call.pipe, plan) as tracker:
        first = call.run()
        assert tracker.cached_bytes == 0
        assert torch.equal(call.run(), first)
    assert not torch.equal(first, plain)
    assert torch.equal(call.run(), plain)


@pytest.mark.parametrize("name", ["sd15", "wan21"])
def test_a_table_that_computes_everything_changes_no_bit(cases, name):
    call = cases.call(name, batch=2)
    plain = call.run()
    for plan in (
        Forecast(first=50),
        GuidanceInterval(0, 50, "reuse", every=3),
        GuidanceInterval(weights=(7.5,), scale=7.5),
        SelfAttentionInterval(1),
    ):
        with gated(call.pipe, plan):
            assert torch.equal(call.run(), plain), plan


def test_an_interrupt_before_a_forecast_leaves_the_next_call_right(cases):
    call = cases.call("sd15", scheduler="DDIMScheduler")
    with gated(call.pipe, Forecast((1, 3))):
        expected = call.run()
        for last in range(6):

            def interrupt(pipe, step, timestep, tensors, last=last):
                pipe._interrupt = step == last
                return tensors

            call.run(callback_on_step_end=interrupt)
            assert torch.equal(call.run(), expected)


def test_guidance_ended_by_a_callback_before_a_forecast(cases):
    """With equal captions the two branches are one: ending guidance changes nothing."""
    call = cases.call("sd15", scheduler="EulerDiscreteScheduler")

    def end(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    same = {"negative_prompt_embeds": call.case.text[1]["prompt_embeds"]}
    with gated(call.pipe, Forecast((2, 4))):
        whole = call.run(**same)
        ended = call.run(
            **same,
            callback_on_step_end=end,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    assert float((ended - whole).abs().max() / whole.abs().max()) < CLOSE


def test_memory_of_new_kinds_is_predicted_exactly(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    for plan in PLANS:
        with gated(pipe, plan) as summary:
            pipe(**arguments(pipe, 2, guidance_scale=7.5))
        assert summary.peak_bytes == cache_bytes(pipe.unet, plan, 6, 8, 8, 2), plan


def test_weights_refuse_what_they_cannot_scale(tiny_models):
    plan = GuidanceInterval(weights=(7.5, 3.0), scale=7.5)
    with pytest.raises(ValueError, match="as an input of a distilled"):
        gated(tiny_models("lcm_sdxl"), plan).__enter__()
