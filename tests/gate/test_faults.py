"""The reference's faults (tgate 1.0.0 with diffusers 0.42), each with ours right."""

import copy
import gc
import pickle
import threading
import weakref
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from PIL import Image

from tgate_batch.gate import (
    DeepCache,
    Forecast,
    GatePlan,
    GuidanceInterval,
    cache_bytes,
    denoiser_of,
    disable_tgate,
    enable_tgate,
    gated,
    is_guided,
)

PLAN = GatePlan(3, sp_interval=2, fi_interval=2, warm_up=0)
NAMES = ["sd15", "sdxl", "pixart_alpha", "pixart_sigma"]


def draw(pipe, call, plan=PLAN, guided=True, **options):
    with gated(pipe, plan, guided=guided, **options):
        return pipe(**call)[0]


def traces(pipe):
    """Everything that hooks leave on modules."""
    return {
        (name, attribute)
        for name, module in denoiser_of(pipe).named_modules()
        for attribute in ("forward", "_diffusers_hook", "cache")
        if attribute in vars(module)
    } | {
        (name, hook)
        for name, module in denoiser_of(pipe).named_modules()
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    }


# 1. A plain call after a gated one stays patched.
@pytest.mark.parametrize("name", [*NAMES, "lcm_sdxl", "svd"])
def test_plain_calls_before_and_after_a_gated_block_are_bitwise_equal(tiny_models, arguments, name):
    pipe = tiny_models(name, scheduler=None if name in ("lcm_sdxl", "svd") else "ddim")
    guided = name != "lcm_sdxl"
    call = arguments(pipe, 2, steps=4)
    plain = lambda: pipe(**call, generator=torch.Generator().manual_seed(0))[0]  # noqa: E731
    before = plain()
    with gated(pipe, PLAN, guided=guided):
        inside = plain()
    assert torch.equal(before, plain())
    assert not torch.equal(before, inside)
    assert traces(pipe) == set()


def test_an_exception_inside_the_block_leaves_nothing_behind(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe)
    before = pipe(**call)[0]

    def stop(pipe, step, timestep, tensors):
        if step == 3:
            raise KeyboardInterrupt
        return tensors

    for deepcache in (None, DeepCache(3, 0)):
        with pytest.raises(KeyboardInterrupt):
            draw(pipe, call | {"callback_on_step_end": stop}, deepcache=deepcache)
        assert traces(pipe) == set()
        assert torch.equal(before, pipe(**call)[0])


# 2. A second call sees the first one's cache.
def test_calls_inside_one_block_do_not_see_each_other(tiny_models, arguments):
    pipe = tiny_models("sdxl", scheduler="ddim")
    calls = [
        arguments(pipe, batch, steps=steps, seed=seed)
        for batch, steps, seed in [(1, 5, 1), (3, 5, 2), (1, 1, 3), (2, 6, 4), (1, 5, 1)]
    ]
    alone = [draw(pipe, call) for call in calls]
    with gated(pipe, PLAN):
        together = [pipe(**call)[0] for call in calls]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_call_stopped_half_way_does_not_touch_the_next(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe)
    expected = draw(pipe, call)

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 3
        return tensors

    with gated(pipe, PLAN):
        pipe(**call, callback_on_step_end=stop)
        assert torch.equal(pipe(**call)[0], expected)


# 3. Without guidance it crashes, or averages two pictures.
@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha"])
def test_without_guidance_no_pictures_are_mixed(tiny_models, arguments, name):
    pipe = tiny_models(name, scheduler="ddim")
    one, two, three, four = (
        draw(pipe, arguments(pipe, batch, guidance_scale=1.0), guided=False)
        for batch in (1, 2, 3, 4)
    )
    for fewer, more in ((one, two), (two, three), (three, four)):
        assert (more[: len(fewer)] - fewer).abs().max() < 1e-3 * one.abs().max()


def test_videos_without_guidance_are_not_mixed(tiny_models, arguments):
    pipe = tiny_models("svd")
    unguided = {"steps": 4, "max_guidance_scale": 1.0, "noise_aug_strength": 0.0}
    together = draw(pipe, arguments(pipe, 2, **unguided), guided=False)
    alone = draw(pipe, arguments(pipe, 1, **unguided), guided=False)
    assert (together[:1] - alone).abs().max() < 1e-3 * alone.abs().max()


@pytest.mark.parametrize("name", ["sd15", "pixart_alpha"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_wrong_word_about_guidance_is_refused(tiny_models, arguments, name, batch):
    pipe = tiny_models(name, scheduler="ddim")
    with pytest.raises(ValueError, match=r"^gated\(guided=True\) but .* leave `guided` out"):
        draw(pipe, arguments(pipe, batch, guidance_scale=1.0), guided=True)


@pytest.mark.parametrize(
    ("name", "scale", "guided"),
    [
        ("sd15", 7.5, True),
        ("sd15", 1.0, False),
        ("sdxl", 5.0, True),
        ("pixart_alpha", 4.5, True),
        ("pixart_alpha", 1.0, False),
        ("lcm_sdxl", 8.0, False),
        ("lcm_pixart_alpha", 0.0, False),
        ("svd", 3.0, True),
        ("svd", 1.0, False),
    ],
)
def test_is_guided_says_what_the_pipeline_does(tiny_models, name, scale, guided):
    assert is_guided(tiny_models(name), scale) is guided


# 4. An LCM-LoRA with real guidance crashes.
def test_a_distilled_scheduler_with_guidance(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True)
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)

    def run(batch):
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        call = arguments(pipe, batch, steps=4, guidance_scale=2.0, generator=generators)
        return draw(pipe, call, GatePlan(2))

    alone = run(1)
    assert (run(2)[:1] - alone).abs().max() < 1e-3 * alone.abs().max()


# 5. Second-order schedulers lose the cache or mix pictures; 6. PNDM too.
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("sd15", diffusers.HeunDiscreteScheduler),
        ("sdxl", diffusers.HeunDiscreteScheduler),
        ("pixart_alpha", diffusers.HeunDiscreteScheduler),
        ("pixart_alpha", diffusers.KDPM2DiscreteScheduler),
        ("pixart_alpha", diffusers.KDPM2AncestralDiscreteScheduler),
        pytest.param("sd15", diffusers.KDPM2DiscreteScheduler, marks=pytest.mark.slow),
        pytest.param("sdxl", diffusers.KDPM2AncestralDiscreteScheduler, marks=pytest.mark.slow),
    ],
)
def test_both_calls_of_a_second_order_step_act_alike(tiny_models, arguments, name, scheduler):
    pipe = tiny_models(name, fresh=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    assert branches(pipe, arguments(pipe, 2, steps=5)) == [2, 2, 2, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha"])
def test_both_first_calls_of_pndm_are_its_first_step(tiny_models, arguments, name):
    pipe = tiny_models(name, fresh=True)
    pipe.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    assert branches(pipe, arguments(pipe, 2, steps=5)) == [2, 2, 2, 2, 1, 1]


def test_pndm_equals_the_reference_where_the_reference_counts_it_right(tiny_models, arguments):
    import tgate

    ours, theirs = tiny_models("sd15"), tgate.TgateSDLoader(tiny_models("sd15", fresh=True))
    assert type(ours.scheduler).__name__ == "PNDMScheduler"
    for plan in (GatePlan(1), GatePlan(3, 2, 2, 1)):
        call = arguments(ours, 2)
        settings = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
        assert torch.equal(draw(ours, call, plan), theirs.tgate(**call, **settings)[0])


def test_pndm_with_runge_kutta_steps_is_refused_by_name(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True)
    pipe.scheduler = diffusers.PNDMScheduler(skip_prk_steps=False)
    with pytest.raises(ValueError, match=r"^PNDMScheduler .* T-GATE counts .* use DDIM"):
        draw(pipe, arguments(pipe))


def branches(pipe, call):
    """How many branches the denoiser runs at each of its calls, gated."""
    seen = []
    with gated(pipe, PLAN):
        inner = denoiser_of(pipe).conv_in if hasattr(pipe, "unet") else pipe.transformer.pos_embed
        handle = inner.register_forward_hook(lambda module, args, out: seen.append(len(out)))
        assert pipe(**call)[0].isfinite().all()
        handle.remove()
    return [rows // len(call["latents"]) for rows in seen]


# 7. Turning guidance off from a callback crashes.
@pytest.mark.parametrize(
    ("name", "cutoff"),
    [
        *(("sd15", step) for step in (0, 2, 4)),
        *(("sdxl", step) for step in (1, 3)),
        *(pytest.param("sd15", step, marks=pytest.mark.slow) for step in (1, 3)),
        *(pytest.param("sdxl", step, marks=pytest.mark.slow) for step in (0, 2, 4)),
    ],
)
def test_guidance_turned_off_by_a_callback(tiny_models, arguments, name, cutoff):
    pipe = tiny_models(name, scheduler="ddim")

    def turn_off(pipe, step, timestep, tensors):
        if step == cutoff:
            pipe._guidance_scale = 1.0
            tensors = {key: value.chunk(2)[-1] for key, value in tensors.items()}
        return tensors

    names = ["prompt_embeds"]
    if name == "sdxl":
        names += ["add_text_embeds", "add_time_ids"]
    call = arguments(pipe, 2) | {
        "callback_on_step_end": turn_off,
        "callback_on_step_end_tensor_inputs": names,
    }
    assert draw(pipe, call).isfinite().all()
    # A plan that reuses nothing must give the plain pipeline's picture, step by step.
    assert torch.equal(draw(pipe, call, GatePlan(20)), pipe(**call)[0])


def test_reused_attention_follows_the_positive_branch_when_guidance_ends(tiny_models, arguments):
    """With both prompts equal the two branches are one: ending guidance must change nothing."""
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe, 2)
    call["negative_prompt_embeds"] = call["prompt_embeds"]
    plan = GatePlan(20, sp_interval=5, warm_up=1)

    def turn_off(pipe, step, timestep, tensors):
        if step == 2:  # between the store at 1 and the reuse at 3
            pipe._guidance_scale = 1.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    more = {
        "callback_on_step_end": turn_off,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    ended = draw(pipe, call | more, plan)
    assert (ended - draw(pipe, call, plan)).abs().max() < 1e-3 * ended.abs().max()


# 8. Processors are bypassed: custom ones, fused projections, IP-Adapter.
class Doubling(AttnProcessor2_0):
    """Attention, times two."""

    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


def test_a_custom_processor_is_honoured(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    stock = draw(pipe, call)
    pipe.unet.set_attn_processor(Doubling())
    doubled = draw(pipe, call)
    assert not torch.equal(stock, doubled)
    # Doubling the output projections instead is the same network.
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    with torch.no_grad():
        for layer in pipe.unet.modules():
            if isinstance(layer, Attention):
                layer.to_out[0].weight.mul_(2)
                layer.to_out[0].bias.mul_(2)
    assert (draw(pipe, call) - doubled).abs().max() < 1e-3 * doubled.abs().max()


def test_fused_projections_are_honoured(tiny_models, arguments):
    pipe = tiny_models("sdxl", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    apart = draw(pipe, call)
    pipe.fuse_qkv_projections(vae=False)
    together = draw(pipe, call)
    assert (apart - together).abs().max() < 1e-3 * apart.abs().max()


# 9. Other hooks on attention layers are dropped.
def test_other_hooks_on_attention_layers_stay(tiny_models, arguments):
    from accelerate.hooks import ModelHook as AccelerateHook
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module
    from diffusers.hooks import HookRegistry, ModelHook

    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    plain, inside = pipe(**call)[0], draw(pipe, call)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    counts = {"accelerate": 0, "diffusers": 0}

    class Counting(AccelerateHook):
        def pre_forward(self, module, *args, **kwargs):
            counts["accelerate"] += 1
            return args, kwargs

    class AlsoCounting(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            counts["diffusers"] += 1
            return args, kwargs

    add_hook_to_module(layer, Counting())
    registry = HookRegistry.check_if_exists_or_initialize(layer)
    registry.register_hook(AlsoCounting(), "counting")
    assert torch.equal(draw(pipe, call), inside)
    assert counts == {"accelerate": 3, "diffusers": 3}  # computed at steps 0, 1, 2 of 6
    assert torch.equal(pipe(**call)[0], plain)
    assert counts == {"accelerate": 9, "diffusers": 9}
    registry.remove_hook("counting")
    remove_hook_from_module(layer)
    assert torch.equal(draw(pipe, call), inside)


# 10. Hooks are made anew at every step: test_compile_and_offload.py.
# 11. Settings are not validated: test_plan.py; and DeepCache's branch, which the U-Net bounds.
def test_a_branch_that_the_unet_does_not_have_is_refused(tiny_models):
    pipe = tiny_models("sd15")
    with (
        pytest.raises(
            ValueError, match=r"^branch=6 is deeper .*\. Fix: use 0 \(the shallowest\) to 5$"
        ),
        gated(pipe, None, deepcache=DeepCache(3, 6)),
    ):
        pass
    assert traces(pipe) == set()


# 12. SDXL interleaves negative time ids in a batch: the gate keeps the rows that it is given.
def test_negative_time_ids_of_one_picture_equal_the_reference(tiny_models, arguments):
    import tgate

    ours = tiny_models("sdxl", scheduler="ddim")
    theirs = tgate.TgateSDXLLoader(tiny_models("sdxl", fresh=True, scheduler="ddim"))
    call = arguments(ours, 1, negative_original_size=(32, 32), negative_target_size=(16, 16))
    settings = {"gate_step": 3, "sp_interval": 2, "fi_interval": 2, "warm_up": 0}
    assert torch.equal(draw(ours, call), theirs.tgate(**call, **settings)[0])


# 13. Caches that are never read: test_memory.py.
def test_sdxl_cross_attention_at_1024_takes_210_megabytes():
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SDXL)
    size = cache_bytes(unet, GatePlan(10), 25, 128, 128, dtype=torch.float16)
    assert 200e6 < size <= 210e6


# Refusals.
def test_joint_attention_is_refused():
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
    )  # fmt: skip
    pipe = SimpleNamespace(transformer=transformer)
    with (
        pytest.raises(
            ValueError, match=r"^SD3Transformer2DModel is not supported.* use a pipeline of Stable"
        ),
        gated(pipe, PLAN),
    ):
        pass
    pipe.transformer = diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^FluxTransformer2DModel"), gated(pipe, PLAN):
        pass


def test_a_block_within_a_block_is_refused_and_the_outer_one_goes_on(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe)
    expected = draw(pipe, call)
    with gated(pipe, PLAN):
        with pytest.raises(ValueError, match="already gated"), gated(pipe, PLAN):
            pass
        assert torch.equal(pipe(**call)[0], expected)
    assert traces(pipe) == set()


def test_neither_plan_nor_deepcache_is_the_plain_pipeline(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe)
    assert torch.equal(draw(pipe, call, None), pipe(**call)[0])


SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize("called", [False, True])
def test_an_enabled_pipeline_that_nobody_refers_to_is_freed(tiny_models, arguments, called):
    pipe = tiny_models("sd15", fresh=True)
    denoiser = weakref.ref(pipe.unet)
    enable_tgate(pipe, PLAN)
    if called:
        pipe(**arguments(pipe))
    del pipe
    gc.collect()
    assert denoiser() is None


def test_a_copy_of_an_enabled_pipeline_is_not_enabled_and_disables_nothing(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True)
    call = arguments(pipe)
    plain = draw(pipe, call, None)
    enable_tgate(pipe, PLAN)
    inside = pipe(**call).images
    copied = copy.deepcopy(pipe)
    disable_tgate(copied)
    assert torch.equal(draw(copied, call, None), plain)
    assert torch.equal(pipe(**call).images, inside)
    assert not torch.equal(inside, plain)


def test_two_threads_in_one_pipeline_are_refused_by_name_and_the_next_call_is_right(
    tiny_models, arguments
):
    pipe = tiny_models("sd15", fresh=True)
    call = arguments(pipe)
    found = []

    def second():
        try:
            found.append(pipe(**call))
        except ValueError as error:
            found.append(str(error))

    def in_between(pipe, step, timestep, kwargs):
        if step == 1:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        return kwargs

    with gated(pipe, PLAN):
        right = pipe(**call).images
        with pytest.raises(ValueError, match="two threads call one StableDiffusionPipeline"):
            pipe(**call, callback_on_step_end=in_between)
        assert len(found) == 1
        assert "two threads call one StableDiffusionPipeline" in found[0]
        thread = threading.Thread(target=second)  # one after the other may be any thread's
        thread.start()
        thread.join()
        assert torch.equal(found[1].images, right)
        assert torch.equal(pipe(**call).images, right)


# Pipelines that share parts, and other hooks.
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).convert("RGB")


@pytest.mark.parametrize("before", [None, 10, 30])
def test_a_sibling_on_the_scheduler_is_gated_at_its_own_steps(tiny_models, arguments, before):
    """``from_pipe`` shares denoiser and scheduler; what the enabled pipeline counted is not its."""
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    sibling = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)
    call = arguments(pipe, steps=10) | {"image": PICTURE, "strength": 0.5}
    del call["latents"]
    seeded = lambda: call | {"generator": torch.Generator().manual_seed(0)}  # noqa: E731
    own = draw(sibling, seeded(), GatePlan(0.4))
    summary = enable_tgate(pipe, GatePlan(0.4))
    if before is not None:
        pipe(**arguments(pipe, steps=before))
    assert torch.equal(sibling(**seeded())[0], own)
    assert summary.rows == [2, 2, 1, 1, 1]
    disable_tgate(pipe)


def test_a_loop_written_by_hand_after_a_pipeline_call_is_read(tiny_models, arguments):
    pipe = tiny_models("sd15", scheduler="ddim")
    call = arguments(pipe, steps=5)
    text = torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]])
    with gated(pipe, GatePlan(0.5)) as summary:
        pipe(**call)
        pipe.scheduler.set_timesteps(8)
        latents = call["latents"]
        with torch.no_grad():
            for t in pipe.scheduler.timesteps:
                negative, positive = pipe.unet(latents.repeat(2, 1, 1, 1), t, text)[0].chunk(2)
                noise = negative + 7.5 * (positive - negative)
                latents = pipe.scheduler.step(noise, t, latents).prev_sample
    assert summary.rows == [2, 2, 2, 2, 1, 1, 1, 1]


def test_a_sibling_with_its_own_scheduler_is_refused(tiny_models):
    pipe = tiny_models("wan21")
    parts = pipe.components | {"scheduler": copy.deepcopy(pipe.scheduler)}
    other = type(pipe)(**parts)
    other.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 3}
    with (
        gated(pipe, PLAN),
        pytest.raises(ValueError, match=r"calls WanTransformer3DModel again before a step"),
    ):
        other("a cat", **size, output_type="latent")


def test_a_late_interval_in_guess_mode_keeps_images_apart(tiny_models, arguments):
    from test_controlnet import control_of

    stock = tiny_models("sd15", scheduler="ddim")
    pipe = diffusers.AutoPipelineForText2Image.from_pipe(stock, controlnet=control_of(stock.unet))
    pipe.set_progress_bar_config(disable=True)
    first, second, third = (torch.rand(1, 3, 64, 64) for _ in range(3))

    def drawn(*hints, batch=2):
        size = {"height": 64, "width": 64, "image": torch.cat(hints), "guess_mode": True}
        return draw(pipe, arguments(stock, batch, **size), GuidanceInterval(1, 4))

    assert torch.equal(drawn(first, second)[0], drawn(first, third)[0])
    assert drawn(first, batch=1).isfinite().all()


def test_attention_called_in_chunks_is_refused(tiny_models):
    """As diffusers' FreeNoise does it to save memory."""
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    layer = pipe.unet.mid_block.attentions[0]
    own = layer.forward

    def in_chunks(states, encoder_hidden_states=None, **kwargs):
        pairs = zip(states.chunk(2), encoder_hidden_states.chunk(2), strict=True)
        return (torch.cat([own(one, text, **kwargs)[0] for one, text in pairs]),)

    layer.forward = in_chunks
    call = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}
    pipe("a cat", **call)
    with pytest.raises(ValueError, match="called several times in one call of the denoiser"):
        draw(pipe, {"prompt": "a cat", **call})


def test_guidance_drops_the_captions_of_every_frame(tiny_models):
    """AnimateDiff repeats a caption's rows for each frame."""
    stock = tiny_models("sd15", scheduler="ddim")
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    unet = diffusers.UNetMotionModel.from_unet2d(
        copy.deepcopy(stock.unet),
        diffusers.MotionAdapter(
            block_out_channels=(32, 64),
            motion_norm_num_groups=8,
            motion_num_attention_heads=4,
            use_motion_mid_block=False,
        ),
    )
    pipe = diffusers.AnimateDiffPipeline(
        **{name: stock.components[name] for name in names}, unet=unet.eval(), motion_adapter=None
    )
    pipe.set_progress_bar_config(disable=True)
    call = {"num_frames": 2, "height": 64, "width": 64, "num_inference_steps": 4}
    with gated(pipe, GuidanceInterval(0, 2)) as summary:
        pipe("a cat", **call, output_type="latent")
    assert summary.rows == [2, 2, 1, 1]


def test_another_deepcache_helper_is_refused_by_name(tiny_models):
    from DeepCache import DeepCacheSDHelper

    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    helper.enable()
    with pytest.raises(ValueError, match=r"DeepCache helper is already enabled"), gated(pipe, PLAN):
        pass


def test_a_denoiser_replaced_inside_the_block_is_refused(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call, own = arguments(pipe), pipe.unet
    with gated(pipe, PLAN):
        expected = pipe(**call)[0]
        pipe.unet = copy.deepcopy(own)
        with pytest.raises(ValueError, match="was replaced inside the block"):
            pipe(**call)
        pipe.unet = own
        assert torch.equal(pipe(**call)[0], expected)


def test_a_gated_pipeline_is_pickled_only_outside_the_block(tiny_models):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    for plan in (PLAN, Forecast((2,))):
        with gated(pipe, plan), pytest.raises(ValueError, match="cannot be pickled"):
            pickle.dumps(pipe.unet)
    assert pickle.dumps(pipe.unet)


def test_masks_of_adapters_are_no_rows_of_images():
    from tgate_batch.gate.denoiser_hook import _half

    given = {"ip_adapter_masks": torch.zeros(2, 1, 4, 4), "scale": torch.zeros(2)}
    assert {name: len(value) for name, value in _half(given, 2, 1).items()} == {
        "ip_adapter_masks": 2,
        "scale": 1,
    }


def test_a_plan_without_attention_runs_on_joint_attention():
    """SD3: guidance by steps and forecasts need no separate cross-attention."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
    )  # fmt: skip
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    names = [f"{side}{kind}" for side in ("", "negative_") for kind in ("", "pooled_")]
    call = {
        f"{name}prompt_embeds": torch.randn(1, 16) if "pooled" in name else torch.randn(1, 5, 16)
        for name in names
    } | {"latents": torch.randn(1, 4, 8, 8), "num_inference_steps": 5, "output_type": "latent"}
    call |= {"height": 64, "width": 64}
    plain = pipe(**call)[0]
    with gated(pipe, GuidanceInterval(0, 2)) as summary:
        ended = pipe(**call)[0]
    assert summary.rows == [2, 2, 1, 1, 1]
    same = {f"negative_{name}": call[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    alone = pipe(**call | same)[0]
    with gated(pipe, GuidanceInterval(2), guided=True):
        late = pipe(**call | same)[0]
    assert (late - alone).abs().max() < 1e-4
    assert not torch.equal(ended, plain)
    with gated(pipe, Forecast((3,))) as summary:
        assert not torch.equal(pipe(**call)[0], plain)
    assert summary.rows == [2, 2, 2, 2]
    assert torch.equal(pipe(**call)[0], plain)
