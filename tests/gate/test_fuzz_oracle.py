"""Random pipeline calls under the gate draw what the loop by hand draws, in float64."""

import random
from dataclasses import replace

import pytest
import tgate as reference
import torch
from cases import FLOWS, KIN, SCHEDULERS, STEERED, TEXT, Call, Cases, random_plan
from oracle import TWO_CALLS_A_STEP, draw

from tgate_batch.gate import GatePlan, gated

CLOSE = 1e-7  # of the largest latent; most are equal to the last bit
NEVER = GatePlan(1000)
LOADERS = {
    "sd15": reference.TgateSDLoader,
    "sd21": reference.TgateSDLoader,
    "sdxl": reference.TgateSDXLLoader,
    "pixart_alpha": reference.TgatePixArtAlphaLoader,
    "pixart_sigma": reference.TgatePixArtSigmaLoader,
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::tgate_batch.gate.GateNotReached", "ignore::UserWarning"
)


def few_or_many(few: int, many: int):
    """``count``: few in every run of the tests, many in the long one."""
    slow = pytest.param(many, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])
    return pytest.mark.parametrize("count", [pytest.param(few, id="few"), slow])


@pytest.fixture(scope="module")
def cases():
    return Cases()


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a part of the largest value."""
    assert found.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max())


def check(call: Call, plan: tuple) -> None:
    with gated(call.pipe, GatePlan(*plan)):
        found = call.run()
    apart = difference(found, draw(call.pipe, replace(call.case, plan=plan)))
    assert apart < CLOSE, (plan, call.words)


@few_or_many(60, 600)
def test_random_calls_draw_what_the_loop_by_hand_draws(cases, count):
    chance = random.Random(count)
    for _ in range(count):
        call = cases.random(chance, TEXT)
        check(call, random_plan(chance, call.case.steps))


@few_or_many(4, 40)
@pytest.mark.parametrize("name", KIN)
def test_random_calls_of_the_newer_families(cases, name, count):
    chance = random.Random(name)
    for _ in range(count):
        call = cases.random(chance, [name])
        check(call, random_plan(chance, call.case.steps))


@pytest.mark.parametrize("end", [0.5, 0.8])
@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "PNDMScheduler", "DDIMScheduler"])
def test_a_part_of_the_steps_is_one_of_those_that_run(cases, scheduler, end):
    """A loop that ends early has a progress bar of evaluations, not of steps."""
    for part in (0.3, 0.5, 0.7):
        call = cases.call("sdxl", scheduler=scheduler, steps=10, denoising_end=end)
        check(call, (part, 2, 2, 1))


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [(name, scheduler) for name in STEERED for scheduler in SCHEDULERS]
    + [(name, scheduler) for name in ("sana", "wan21") for scheduler in FLOWS],
)
def test_a_plan_that_never_gates_changes_no_bit(cases, name, scheduler):
    call = cases.call(name, scheduler=scheduler, batch=2, steps=4)
    plain = call.run()
    with gated(call.pipe, NEVER):
        assert torch.equal(call.run(), plain)
    assert difference(draw(call.pipe, call.case), plain) < CLOSE  # so the loop by hand is theirs


@few_or_many(12, 60)
def test_with_equal_prompts_guidance_changes_nothing(cases, count):
    chance = random.Random(count)
    for _ in range(count):
        call = cases.random(chance, TEXT + KIN)
        if call.case.guess_mode:  # whose negative branch is not steered
            continue
        same = {f"negative_{name}": value for name, value in call.case.text[1].items()}
        plan = GatePlan(*random_plan(chance, call.case.steps))
        with gated(call.pipe, plan):
            guided = call.run(**same, guidance_scale=5.0)
            unguided = call.run(**same, guidance_scale=1.0)
        distilled = "lcm_sdxl" in call.words  # takes the scale as an input
        assert distilled or difference(guided, unguided) < 1e-5, (plan, call.words)


@few_or_many(6, 48)
def test_random_calls_equal_the_reference_bit_for_bit(cases, count):
    """Where it is right: schedulers of one call a step, and guidance."""
    patched = Cases()
    others = TWO_CALLS_A_STEP | {"PNDMScheduler"}
    schedulers = [name for name in SCHEDULERS if name not in others]
    chance = random.Random(count)
    for _ in range(count):
        name = chance.choice(list(LOADERS))
        settings = {
            "scheduler": chance.choice(schedulers),
            "seed": chance.randrange(1000),
            "steps": chance.randint(3, 9),
            "batch": chance.randint(1, 3),
            "guidance": chance.choice([2.0, 4.5, 7.5]),
        }
        plan = GatePlan(chance.randint(1, 11), *(chance.randint(1, 4) for _ in range(3)))
        ours, theirs = cases.call(name, **settings), patched.call(name, **settings)
        with gated(ours.pipe, plan):
            found = ours.run()
        expected = LOADERS[name](theirs.pipe).tgate(
            **theirs.arguments,
            **vars(plan),
            generator=torch.Generator().manual_seed(theirs.case.seed),
        )[0]
        assert torch.equal(found, expected), (plan, ours.words)
