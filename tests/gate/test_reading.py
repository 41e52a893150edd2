"""What the gate reads: steps, branches and the loop's end; and what it refuses to guess."""

import copy
import warnings

import diffusers
import pytest
import torch
from PIL import Image

from tgate_batch.gate import (
    DeepCache,
    GateNotReached,
    GatePlan,
    cache_bytes,
    disable_tgate,
    enable_tgate,
    gated,
)
from tgate_batch.gate.pipeline import tracked

PLAN = GatePlan(3, sp_interval=2, fi_interval=2, warm_up=0)
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).convert("RGB")


def draw(pipe, call, plan=PLAN, **options):
    with gated(pipe, plan, **options):
        return pipe(**call)[0]


def cloned(call, row):
    """The call with only one row of everything."""
    return {
        name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
        for name, value in call.items()
    }


# Branches.
@pytest.mark.parametrize("name", ["lcm_pixart_alpha", "pixart_alpha", "sd15"])
@pytest.mark.parametrize("plan", [GatePlan(1), PLAN], ids=str)
def test_equal_noise_without_guidance_is_two_pictures(tiny_models, arguments, name, plan):
    """Two equal halves are no sign of guidance: changing prompt 1 leaves picture 2 as it is."""
    pipe = tiny_models(name)
    call = arguments(pipe, 2, guidance_scale=1.0)
    call["latents"] = call["latents"][:1].repeat(2, 1, 1, 1)

    def second(change):
        embeds = call["prompt_embeds"].clone()
        embeds[0] += change
        generators = [torch.Generator().manual_seed(7) for _ in range(2)]
        return draw(pipe, call | {"prompt_embeds": embeds, "generator": generators}, plan)[1]

    assert torch.equal(second(0.0), second(1.0))


def test_guidance_is_read_whatever_was_said_to_the_pipeline(tiny_models, arguments):
    pipe = tiny_models("pixart_alpha", scheduler="ddim")
    with gated(pipe, PLAN) as summary:
        pipe(**arguments(pipe, 2))
        assert summary.rows == [4, 4, 4, 2, 2, 2]
        pipe(**arguments(pipe, 2, guidance_scale=1.0))
        assert summary.rows == [2] * 6


@pytest.mark.parametrize("told", [True, False])
def test_a_wrong_assertion_about_guidance_is_refused(tiny_models, arguments, told):
    pipe = tiny_models("pixart_alpha", scheduler="ddim")
    call = arguments(pipe, 2, guidance_scale=1.0 if told else 4.5)
    with pytest.raises(ValueError, match=rf"^gated\(guided={told}\) but PixArtAlphaPipeline runs"):
        draw(pipe, call, guided=told)


def test_perturbed_attention_guidance_is_refused_by_number_and_name(tiny_models, arguments):
    stock = tiny_models("sd15", fresh=True, scheduler="ddim")
    pipe = diffusers.AutoPipelineForText2Image.from_pipe(stock, enable_pag=True)
    pipe.set_progress_bar_config(disable=True)
    call = arguments(stock, 2)
    with pytest.raises(ValueError, match=r"6 rows for 2 images, that is 3 branches.*perturbed"):
        draw(pipe, call)
    with pytest.raises(ValueError, match="branch for perturbed-attention guidance"):
        draw(pipe, call | {"guidance_scale": 1.0})
    assert torch.equal(draw(pipe, call | {"pag_scale": 0.0}), draw(stock, call))


def test_image_guidance_is_refused_by_number(tiny_models, arguments):
    stock = tiny_models("sd15", fresh=True, scheduler="ddim")
    unet = diffusers.UNet2DConditionModel.from_config(stock.unet.config, in_channels=8).eval()
    parts = {**stock.components, "unet": unet}
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = arguments(stock, 1) | {"image": PICTURE}
    with pytest.raises(ValueError, match="3 rows for 1 images, that is 3 branches"):
        draw(pipe, call)


def test_late_guidance_is_refused(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe, 1, guidance_scale=1.0)
    both = torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]])

    def turn_on(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 7.5
            tensors["prompt_embeds"] = both
        return tensors

    with pytest.raises(ValueError, match=r"^guidance begins at step 2"):
        draw(pipe, call | {"callback_on_step_end": turn_on})


def test_a_picture_dropped_by_a_callback_is_refused(tiny_models, arguments):
    """Half of the rows is no end of guidance while the sample is halved too."""
    pipe = tiny_models("sd15", scheduler="ddim")

    def drop(pipe, step, timestep, tensors):
        if step == 1:
            tensors["latents"] = tensors["latents"][:1]
            tensors["prompt_embeds"] = tensors["prompt_embeds"][::2]
        return tensors

    call = arguments(pipe, 2) | {
        "callback_on_step_end": drop,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    with pytest.raises(ValueError, match="from 2 to 1 images within one pipeline call"):
        draw(pipe, call)


# Steps.
def test_a_scheduler_that_draws_noise_keeps_its_generator(tiny_models, arguments):
    """Pipelines look for `generator` in the signature of the scheduler's step."""
    pipe = tiny_models("sd15", fresh=True)
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    call = arguments(pipe, 2, steps=4)
    seeded = lambda: call | {"generator": torch.Generator().manual_seed(0)}  # noqa: E731
    plain = pipe(**seeded())[0]
    with pytest.warns(GateNotReached):
        assert torch.equal(draw(pipe, seeded(), GatePlan(1000)), plain)


def test_a_copied_scheduler_is_another_one(tiny_models):
    pipe = tiny_models("sd15", scheduler="ddim")
    sample = torch.zeros(1, 4, 8, 8)
    with gated(pipe, PLAN) as summary:
        pipe.scheduler.set_timesteps(6)
        copied = copy.deepcopy(pipe.scheduler)
        pipe.unet(sample, 1, torch.zeros(1, 7, 32))
        copied.step(sample, 1, sample)  # does not end the step of the original
        with pytest.raises(ValueError, match="again before a step of its DDIM"):
            pipe.unet(sample, 1, torch.zeros(1, 7, 32))
        assert summary.steps == 1


def test_a_scheduler_replaced_inside_the_block_is_read(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    with gated(pipe, PLAN) as summary:
        pipe(**arguments(pipe, 1))
        pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
        pipe(**arguments(pipe, 1, steps=5))
        assert summary.rows == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert "step" not in vars(pipe.scheduler)


def test_another_pipeline_on_the_same_denoiser_is_refused(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    other = diffusers.StableDiffusionPipeline.from_pipe(pipe)
    other.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    other.set_progress_bar_config(disable=True)
    call = arguments(pipe)
    expected = draw(pipe, call)
    with gated(pipe, PLAN):
        assert torch.equal(pipe(**call)[0], expected)
        for _ in range(2):
            with pytest.raises(ValueError, match="call no other on this denoiser"):
                other(**call)
        assert torch.equal(pipe(**call)[0], expected)


def test_modular_pipelines_call_once_a_branch_and_are_refused(tiny_models, arguments):
    stock = tiny_models("sdxl", scheduler="ddim")
    pipe = modular(stock)
    with pytest.raises(ValueError, match=r"calls UNet2DConditionModel again before a step"):
        draw(pipe, {"prompt": "a cat", "height": 64, "width": 64, "num_inference_steps": 6,
                    "image": PICTURE, "strength": 0.5, "output": "latents"})  # fmt: skip


def modular(stock):
    from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks

    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**{k: v for k, v in stock.components.items() if v is not None})
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The end of the loop.
def interrupting(pipe, step, timestep, tensors):
    pipe._interrupt = step == 3
    return tensors


@pytest.mark.parametrize("way", ["text", "image", "denoising_end", "interrupt", "no bar"])
def test_no_stored_tensor_is_alive_when_the_last_decode_begins(tiny_models, arguments, way):
    stock = tiny_models("sdxl", scheduler="ddim")
    pipe, call = stock, arguments(stock, 1, output_type="pt")
    if way == "image":
        pipe = diffusers.AutoPipelineForImage2Image.from_pipe(stock)
        pipe.set_progress_bar_config(disable=True)
        call = {**call, "image": PICTURE, "strength": 0.5, "num_inference_steps": 8}
        del call["latents"]
    elif way == "denoising_end":
        call |= {"denoising_end": 0.7}
    elif way == "interrupt":
        call |= {"callback_on_step_end": interrupting}
    held = []
    with tracked(pipe, GatePlan(2, fi_interval=3)) as gate:
        if way == "no bar":
            vars(pipe)["progress_bar"] = bare_bar
        decode = pipe.vae.decode
        pipe.vae.decode = lambda *a, **k: (held.append(gate.cached_bytes), decode(*a, **k))[1]
        try:
            pipe(**call)
        finally:
            del pipe.vae.decode
            vars(pipe).pop("progress_bar", None)
        assert gate.summary.peak_bytes > 0
    assert held == [0]


class BareBar:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self):
        pass


def bare_bar(iterable=None, total=None):
    return BareBar()


def test_no_stored_tensor_is_alive_after_an_exception_in_the_loop(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")

    def stop(pipe, step, timestep, tensors):
        if step == 3:
            assert gate.cached_bytes > 0
            raise RuntimeError("planted")
        return tensors

    with tracked(pipe, PLAN) as gate:
        with pytest.raises(RuntimeError, match="planted"):
            pipe(**arguments(pipe), callback_on_step_end=stop)
        assert gate.cached_bytes == 0


def test_a_preview_decoded_in_the_loop_frees_nothing(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe)

    def preview(pipe, step, timestep, tensors):
        with pipe.progress_bar(total=1) as bar:  # a bar of its own
            pipe.vae.decode(torch.zeros(1, 4, 8, 8))
            bar.update()
        return tensors

    assert torch.equal(draw(pipe, call | {"callback_on_step_end": preview}), draw(pipe, call))


# Layers.
def test_blocks_with_a_patched_forward_are_refused_by_name(tiny_models, arguments):
    """As tomesd does it: merging tokens by this step's likeness reorders what was stored."""
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]

    class ToMeBlock(type(block)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    block.__class__ = ToMeBlock
    with pytest.raises(ValueError, match=r"have the forward of ToMeBlock.*tomesd\.remove_patch"):
        draw(pipe, arguments(pipe))


def test_a_copy_made_inside_the_block_is_plain_and_whole(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    plain, inside = pipe(**call)[0], draw(pipe, call)
    with gated(pipe, PLAN):
        copied = copy.deepcopy(pipe)
        with torch.no_grad():
            for parameter in copied.unet.parameters():
                parameter.zero_()
        assert torch.equal(pipe(**call)[0], inside)
        assert not copied(**call)[0].equal(plain)  # its own weights, which are zero
        copied.unet.load_state_dict(pipe.unet.state_dict())
        assert torch.equal(copied(**call)[0], plain)
    assert torch.equal(copied(**call)[0], plain)
    with gated(copied, PLAN):
        assert torch.equal(copied(**call)[0], inside)


def test_offloading_inside_the_block_leaves_a_whole_pipeline(tiny_models, arguments):
    from accelerate import cpu_offload

    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    plain, inside = pipe(**call)[0], draw(pipe, call)
    with gated(pipe, PLAN):
        cpu_offload(pipe.unet, "cpu", offload_buffers=True)
        assert torch.equal(pipe(**call)[0], inside)
    assert torch.equal(pipe(**call)[0], plain)
    with gated(pipe, PLAN):
        assert torch.equal(pipe(**call)[0], inside)
    assert torch.equal(pipe(**call)[0], plain)


@pytest.mark.parametrize("deepcache", [None, DeepCache(2, 0)])
def test_a_unet_without_a_middle_block(tiny_models, arguments, deepcache):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    config = pipe.unet.config
    pipe.unet = diffusers.UNet2DConditionModel.from_config(config, mid_block_type=None).eval()
    assert pipe.unet.mid_block is None
    with gated(pipe, PLAN, deepcache=deepcache) as summary:
        assert pipe(**arguments(pipe))[0].isfinite().all()
    if deepcache is None:
        assert summary.peak_bytes == cache_bytes(pipe.unet, PLAN, 6, 8, 8)


@pytest.mark.parametrize(
    "name",
    ["OmniGenTransformer2DModel", "Kandinsky3UNet", "CosmosTransformer3DModel",
     "LTXVideoTransformer3DModel", "PRXTransformer2DModel", "StableCascadeUNet"],
)  # fmt: skip
def test_other_denoisers_are_refused_by_name(name):
    denoiser = type(name, (torch.nn.Module,), {})()
    pipe = type("Pipe", (), {"transformer": denoiser, "scheduler": None})()
    with pytest.raises(ValueError, match=f"^{name} is not supported: its cross-attention keys"):
        gated(pipe, PLAN).__enter__()


# The interface.
def test_a_plan_that_is_never_reached_warns_by_name(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    with pytest.warns(GateNotReached, match=r"^GatePlan\(gate_step=6.*never reached.*runs 6 steps"):
        draw(pipe, arguments(pipe), GatePlan(6))
    image = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    image.set_progress_bar_config(disable=True)
    call = arguments(pipe, steps=8) | {"image": PICTURE, "strength": 0.5}
    del call["latents"]
    with pytest.warns(GateNotReached, match="StableDiffusionImg2ImgPipeline runs 4 steps"):
        draw(image, call, GatePlan(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GateNotReached)
        draw(pipe, arguments(pipe), GatePlan(5))


def test_a_part_of_the_steps_follows_their_number(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    image = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    image.set_progress_bar_config(disable=True)
    with gated(pipe, GatePlan(0.5)) as summary:
        pipe(**arguments(pipe, steps=6))
        assert summary.rows == [2, 2, 2, 1, 1, 1]
        pipe(**arguments(pipe, steps=8))
        assert summary.rows == [2, 2, 2, 2, 1, 1, 1, 1]
    with gated(image, GatePlan(0.5)) as summary:
        call = arguments(pipe, steps=8) | {"image": PICTURE, "strength": 0.5}
        del call["latents"]
        image(**call)
        assert summary.rows == [2, 2, 1, 1]


def test_the_summary_counts_what_was_done(tiny_models, arguments):
    """Tiny PixArt has two blocks: two cross- and two self-attention layers; six steps."""
    pipe = tiny_models("pixart_alpha", scheduler="ddim")
    with gated(pipe, GatePlan(3)) as summary:
        pipe(**arguments(pipe, 1))
    assert (summary.steps, summary.rows) == (6, [2, 2, 2, 1, 1, 1])
    assert summary.computed == 6 * 2 + 3 * 2
    assert summary.stored == 2  # cross-attention at step 2
    assert summary.reused == 3 * 2
    assert summary.peak_bytes == cache_bytes(pipe.transformer, GatePlan(3), 6, 8, 8)


def test_enabled_until_disabled(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    plain, inside = pipe(**call)[0], draw(pipe, call)
    summary = enable_tgate(pipe, PLAN)
    assert torch.equal(pipe(**call)[0], inside)
    assert summary.rows == [2, 2, 2, 1, 1, 1]
    with pytest.raises(ValueError, match="already gated"):
        enable_tgate(pipe, PLAN)
    disable_tgate(pipe)
    disable_tgate(pipe)
    assert torch.equal(pipe(**call)[0], plain)
