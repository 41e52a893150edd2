"""Guidance at some of the steps, with attention as it is: against a loop written out by hand."""

import pytest
import torch

from tgate_batch.gate import DeepCache, GateNotReached, GuidanceInterval, gated

SCALE = 5.0


def by_hand(pipe, call, first, end):
    """SD's loop: guided in [first, end), the caption alone elsewhere."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(call["num_inference_steps"])
    latents = call["latents"] * scheduler.init_noise_sigma
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            rows = scheduler.scale_model_input(latents, t)
            noise = pipe.unet(rows, t, call["prompt_embeds"]).sample
            if first <= step < end:
                without = pipe.unet(rows, t, call["negative_prompt_embeds"]).sample
                noise = without + SCALE * (noise - without)
            latents = scheduler.step(noise, t, latents).prev_sample
    return latents


@pytest.mark.parametrize("interval", [(0, 3), (2, 4), (1, 6), (0, 6), (3, 5)])
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_guidance_in_an_interval_equals_the_loop_by_hand(
    tiny_models, arguments, scheduler, interval
):
    pipe = tiny_models("sd15", scheduler=scheduler)
    call = arguments(pipe, 2, guidance_scale=SCALE)
    expected = by_hand(pipe, call, *interval)
    if interval == (0, 6):
        with pytest.warns(GateNotReached), gated(pipe, GuidanceInterval(*interval)):
            latents = pipe(**call)[0]
    else:
        with gated(pipe, GuidanceInterval(*interval), guided=True) as summary:
            latents = pipe(**call)[0]
        first, end = interval
        assert summary.rows == [4 if first <= step < end else 2 for step in range(6)]
        assert (summary.stored, summary.reused, summary.peak_bytes) == (0, 0, 0)
    assert (latents - expected).abs().max() < 1e-4 * expected.abs().max()


def test_without_guidance_an_interval_changes_nothing(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe, 2, guidance_scale=1.0)
    with gated(pipe, GuidanceInterval(2, 4), guided=False):
        inside = pipe(**call)[0]
    assert torch.equal(inside, pipe(**call)[0])


def test_an_interval_that_begins_late_must_be_told(tiny_models):
    with (
        pytest.raises(ValueError, match=r"begins at step 2 cannot be detected .* guided=True"),
        gated(tiny_models("sd15"), GuidanceInterval(2)),
    ):
        pass


def test_a_part_of_the_steps(tiny_models):
    assert GuidanceInterval(0, 0.4).at(25) == GuidanceInterval(0, 10)
    guided = [now.guided for now in GuidanceInterval(1, 0.5).schedule(6)]
    assert guided == [False, True, True, False, False, False]


@pytest.mark.parametrize("wrong", [{"first": -1}, {"end": 0}, {"end": 1.5}, {"first": 0.5}])
def test_values_that_cannot_work_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r} "):
        GuidanceInterval(**wrong)
    with pytest.raises(ValueError, match="has no step"):
        GuidanceInterval(4, 4)


def test_deepcache_computes_all_where_guidance_begins_and_ends(tiny_models, arguments):
    """Its stored features are of as many rows as the step that stored them ran."""
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    full, calls = [], [-1]
    pipe.unet.conv_in.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: full.append(calls[0]))
    with gated(pipe, GuidanceInterval(2, 5), guided=True, deepcache=DeepCache(4, 0)):
        pipe(**arguments(pipe, 1, steps=10))
    assert full == [0, 2, 5, 9]
