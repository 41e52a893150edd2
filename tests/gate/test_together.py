"""Gated pipelines that share parts, blocks that end in another order, callbacks that do a lot."""

import copy
import random
from dataclasses import replace

import diffusers
import oracle
import pytest
import torch
from cases import Call, Cases, random_plan
from oracle import Remembering, draw
from test_pipelines import give_ip_adapter

from tgate_batch.gate import DeepCache, GatePlan, disable_tgate, enable_tgate, gated
from tgate_batch.gate.pipeline import tracked

PLAN = (3, 2, 2, 0)
GATED = GatePlan(*PLAN)
CLOSE = 1e-7  # of the largest latent
pytestmark = pytest.mark.filterwarnings(
    "ignore::tgate_batch.gate.GateNotReached", "ignore::UserWarning"
)


@pytest.fixture
def cases():
    return Cases()


def inside(call: Call, plan: GatePlan = GATED, **other) -> torch.Tensor:
    with gated(call.pipe, plan):
        return call.run(**other)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def second_of(call: Call, kind=None, scheduler=None):
    """Another pipeline of the same parts, with a denoiser of its own, and how it is called."""
    kind = kind or type(call.pipe)
    pipe = kind.from_pipe(call.pipe, unet=copy.deepcopy(call.pipe.unet), torch_dtype=torch.float64)
    pipe.scheduler = scheduler or call.pipe.scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Schedulers.
@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler", "DDIMScheduler"])
def test_a_subclass_of_a_scheduler_has_its_steps(cases, name):
    call = cases.call("sd15", scheduler=name, plan=PLAN)
    expected = draw(call.pipe, call.case)
    kind = type("Own", (getattr(diffusers, name),), {})
    call.pipe.scheduler = kind.from_config(call.pipe.scheduler.config)
    assert difference(inside(call), expected) < CLOSE


@pytest.fixture
def base_and_refiner(cases):
    """Two calls in a row, of pipelines with one scheduler: ``base()`` and ``refine()``."""
    call = cases.call(
        "sdxl", scheduler="EulerDiscreteScheduler", steps=10, batch=2, denoising_end=0.5
    )
    refiner = second_of(call, diffusers.StableDiffusionXLImg2ImgPipeline)
    latents = inside(call)
    own = ("latents", "height", "width", "denoising_end")
    arguments = {name: value for name, value in call.arguments.items() if name not in own}
    arguments |= {"image": latents, "denoising_start": 0.5}
    return call.pipe, refiner, call.run, lambda: refiner(**arguments)[0]


def test_base_and_refiner_share_a_scheduler(base_and_refiner):
    base, refiner, draw_base, refine = base_and_refiner
    with gated(base, GATED):
        drawn = draw_base()
    with gated(refiner, GATED):
        refined = refine()
    with gated(base, GATED) as first, gated(refiner, GATED) as second:
        for _ in range(2):
            assert torch.equal(draw_base(), drawn)
            assert torch.equal(refine(), refined)
            assert first.rows == second.rows == [4, 4, 4, 2, 2]


def test_the_first_to_be_enabled_may_be_the_first_to_be_disabled(base_and_refiner):
    base, refiner, draw_base, refine = base_and_refiner
    plain = draw_base()
    with gated(refiner, GATED):
        refined = refine()
    enable_tgate(base, GATED)
    enable_tgate(refiner, GATED)
    disable_tgate(base)
    assert torch.equal(draw_base(), plain)
    assert torch.equal(refine(), refined)
    disable_tgate(refiner)
    assert "step" not in vars(base.scheduler)


@pytest.mark.parametrize("steps", [6, 4])
def test_another_pipeline_on_the_scheduler_in_mid_loop_is_refused(cases, steps):
    """It sets the scheduler's timesteps anew, so nobody knows any more which step is next."""
    call = cases.call("sd15", scheduler="DDIMScheduler")
    other = second_of(call)
    expected = inside(call)

    def callback(pipe, step, timestep, tensors):
        if step == 1:
            other(**call.arguments | {"num_inference_steps": steps})
        return tensors

    with gated(call.pipe, GATED):
        with pytest.raises(ValueError, match=r"^the DDIMScheduler of .* got other timesteps in"):
            call.run(callback_on_step_end=callback)
        assert torch.equal(call.run(), expected)
        other.scheduler = copy.deepcopy(call.pipe.scheduler)
        assert torch.equal(call.run(callback_on_step_end=callback), expected)


def test_a_controlnet_gated_in_two_pipelines_is_refused(cases):
    call = cases.call("sd15", scheduler="DDIMScheduler", nets=1)
    other = second_of(call)
    assert other.controlnet is call.pipe.controlnet
    with gated(call.pipe, GATED):
        with pytest.raises(ValueError, match=r"^a ControlNet of this pipeline is already gated"):
            enable_tgate(other, GATED)
        call.run()
    with gated(other, GATED):
        other(**call.arguments)


# Callbacks.
@pytest.mark.parametrize("seed", range(4))
def test_guidance_ended_at_any_step_of_any_plan(cases, seed):
    """From then on the caption's branch runs alone, on the stored half that was its own."""
    chance = random.Random(seed)
    for last in range(6):
        plan = random_plan(chance, 6)
        call = cases.call(
            "sd15", scheduler="EulerDiscreteScheduler", batch=chance.randint(1, 2), plan=plan
        )

        def end(pipe, step, timestep, tensors, last=last):
            if step == last:
                pipe._guidance_scale = 0.0
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
            return tensors

        names = ["latents", "prompt_embeds"]
        found = inside(
            call,
            GatePlan(*plan),
            callback_on_step_end=end,
            callback_on_step_end_tensor_inputs=names,
        )
        assert difference(found, ended_by_hand(call, plan, last)) < CLOSE, (plan, last)


@torch.no_grad()
def ended_by_hand(call: Call, plan: tuple, last: int) -> torch.Tensor:
    """The latents where guidance ends after step ``last``."""
    case, pipe = call.case, call.pipe
    scheduler, today = copy.deepcopy(pipe.scheduler), oracle.Today()
    scheduler.set_timesteps(case.steps)
    gate = max(1, round(plan[0] * case.steps)) if isinstance(plan[0], float) else plan[0]
    latents = case.start * scheduler.init_noise_sigma
    with oracle.remembering(pipe.unet, today) as layers:
        for step, t in enumerate(scheduler.timesteps):
            today.cross, today.self_, keep_shape = oracle.tgate_scheduler(step, gate, *plan[1:])
            if step == last + 1:
                _keep_positive(layers, len(latents))
            branches = [1] if step > last else [0, 1] if step < gate else [0]
            today.halves = not keep_shape and len(branches) == 2
            x = scheduler.scale_model_input(torch.cat([latents] * len(branches)), t)
            found = oracle._predict(pipe, case, x, t, branches, {}).chunk(len(branches))
            guided = found[0] + case.guidance * (found[-1] - found[0])
            latents = scheduler.step(guided, t, latents, return_dict=False)[0]
    return latents


def _keep_positive(layers: list[Remembering], rows: int) -> None:
    for layer in layers:
        if layer.kept and len(layer.kept[0]) == 2 * rows:
            layer.kept[0] = layer.kept[0].chunk(2)[1]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sana", "wan21"])
def test_an_exception_at_any_call_leaves_the_next_call_right(cases, name):
    call = cases.call(name, batch=2)
    denoiser = call.pipe.unet if hasattr(call.pipe, "unet") else call.pipe.transformer
    last = denoiser.conv_out if hasattr(denoiser, "conv_out") else denoiser.proj_out
    plain, expected = call.run(), inside(call)
    for fatal in (0, 2, 3, 5, 8):
        calls = []

        def stop(*_, calls=calls, fatal=fatal):
            calls.append(0)
            if len(calls) == fatal + 1:
                raise RuntimeError("planted")

        handle = last.register_forward_pre_hook(stop)
        with tracked(call.pipe, GATED) as gate:
            try:
                call.run()
            except RuntimeError:
                assert gate.cached_bytes == 0
            else:
                assert len(calls) <= fatal
            handle.remove()
            assert torch.equal(call.run(), expected)
    assert torch.equal(call.run(), plain)


@pytest.mark.parametrize("last", range(6))
def test_an_interrupt_at_any_step_leaves_the_next_call_right(cases, last):
    call = cases.call("sd15", scheduler="DDIMScheduler")
    expected = inside(call)

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step == last
        return tensors

    with tracked(call.pipe, GATED) as gate:
        call.run(callback_on_step_end=interrupt)
        assert gate.cached_bytes == 0
        assert torch.equal(call.run(), expected)


# Other parts.
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("plan", [PLAN, (2, 1, 3, 1), (1, 1, 1, 0)])
def test_ip_adapter_equals_the_loop_by_hand(cases, monkeypatch, name, plan):
    call = cases.call(name, scheduler="DDIMScheduler", batch=2, plan=plan)
    give_ip_adapter(call.pipe.unet.float())
    call.pipe.unet.double()
    pictures = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(5)).double()

    def predict(pipe, case, x, t, branches, residuals):
        own = torch.cat([pictures[branch].expand(2, 1, 16) for branch in branches])
        conditions = (oracle._sizes(case, branches) or {}) | {"image_embeds": [own]}
        embeds = oracle._rows(case, "prompt_embeds", branches)
        return pipe.unet(x, t, embeds, added_cond_kwargs=conditions, return_dict=False)[0]

    found = inside(call, GatePlan(*plan), ip_adapter_image_embeds=[pictures])
    assert difference(found, inside(call, GatePlan(*plan), ip_adapter_image_embeds=[-pictures])) > 0
    monkeypatch.setattr(oracle, "_predict", predict)
    assert difference(found, draw(call.pipe, call.case)) < CLOSE


def test_animatediff_equals_the_loop_by_hand(cases, monkeypatch):
    """Its motion modules, whose two layers attend over time, are left as they are."""
    frames, call = 3, cases.call("sd15", scheduler="DDIMScheduler")
    torch.manual_seed(0)
    motion = diffusers.MotionAdapter(
        block_out_channels=(32, 64),
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        motion_max_seq_length=8,
        use_motion_mid_block=False,
    )
    for parameter in motion.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    parts = call.pipe.components
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    pipe = diffusers.AnimateDiffPipeline(
        **{name: parts[name] for name in names}, motion_adapter=motion
    )
    pipe.unet.double().eval()
    pipe.set_progress_bar_config(disable=True)

    def predict(pipe, case, x, t, branches, residuals):
        embeds = oracle._rows(case, "prompt_embeds", branches).repeat_interleave(frames, 0)
        return pipe.unet(x, t, encoder_hidden_states=embeds, return_dict=False)[0]

    monkeypatch.setattr(oracle, "_predict", predict)
    chance = random.Random(3)
    for guidance in (6.0, 6.0, 1.0):
        plan = random_plan(chance, 6)
        start = torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(1)).double()
        case = replace(call.case, start=start, plan=plan, guidance=guidance)
        arguments = call.arguments | {
            "latents": start,
            "num_frames": frames,
            "guidance_scale": guidance,
        }
        with gated(pipe, GatePlan(*plan)):
            found = pipe(**arguments)[0]
        assert difference(found, draw(pipe, case)) < CLOSE, plan


@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_deepcache_that_skips_nothing_changes_nothing_of_a_picture(cases, strength):
    call = cases.call("sd15", scheduler="DDIMScheduler", steps=10, strength=strength)
    plain, expected = call.run(), inside(call)
    with gated(call.pipe, None, deepcache=DeepCache(1, 0)):
        assert torch.equal(call.run(), plain)
    with gated(call.pipe, GATED, deepcache=DeepCache(1, 0)):
        assert torch.equal(call.run(), expected)
    with tracked(call.pipe, GATED, deepcache=DeepCache(3, 0)) as gate:
        skipped = call.run()
        assert gate.cached_bytes == 0
        assert not torch.equal(skipped, expected)
        assert torch.equal(call.run(), skipped)
