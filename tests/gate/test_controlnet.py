"""ControlNets follow the plan of the denoiser that they steer."""

import inspect

import diffusers
import pytest
import torch
from PIL import Image

from tgate_batch.gate import GateNotReached, GatePlan, cache_bytes, gated

PLAN = GatePlan(3, sp_interval=2, fi_interval=2, warm_up=0)
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).convert("RGB")


def control_of(unet, seed=0):
    """A ControlNet of the U-Net, whose zero convolutions are none, so that it has a say."""
    torch.manual_seed(seed)
    control = diffusers.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(8, 8, 16, 16)
    )
    for parameter in control.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return control.eval()


@pytest.fixture
def controlled(tiny_models):
    """``controlled(name, nets)``: the tiny pipeline with one ControlNet, or ``nets`` of them."""

    def make(name, nets=None):
        stock = tiny_models(name, scheduler="ddim")
        control = control_of(stock.unet)
        if nets is not None:
            control = [control_of(stock.unet, seed) for seed in nets]
        pipe = diffusers.AutoPipelineForText2Image.from_pipe(stock, controlnet=control)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def call_of(arguments):
    def make(pipe, batch=2, nets=1, **more):
        call = arguments(pipe, batch, height=64, width=64, **more)
        return call | {"image": PICTURE if nets == 1 else [PICTURE] * nets}

    return make


def rows_of(module, run):
    """What ``run()`` gives, and the rows of the module's body at each of its calls."""
    rows = []
    handle = module.conv_in.register_forward_hook(lambda body, args, out: rows.append(len(out)))
    try:
        return run(), rows
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("guess_mode", [False, True])
def test_denoiser_and_controlnet_lose_the_same_branch(controlled, call_of, name, guess_mode):
    pipe = controlled(name)
    call = call_of(pipe, guess_mode=guess_mode)
    plain = pipe(**call)[0]
    with gated(pipe, PLAN) as summary:
        inside, rows = rows_of(pipe.controlnet, lambda: pipe(**call)[0])
    assert summary.rows == [4, 4, 4, 2, 2, 2]
    assert rows == ([2] * 6 if guess_mode else [4, 4, 4, 2, 2, 2])  # guess mode: captions alone
    assert not torch.equal(inside, plain)
    with pytest.warns(GateNotReached), gated(pipe, GatePlan(1000)):
        assert torch.equal(pipe(**call)[0], plain)
    assert torch.equal(pipe(**call)[0], plain)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("guess_mode", [False, True])
def test_control_goes_on_after_the_gate(controlled, call_of, name, guess_mode):
    """What reaches the middle of the U-Net is the ControlNet's own output, at every step."""
    pipe = controlled(name)
    given, made = [], []
    inner = pipe.unet.forward

    def heard(*args, **kwargs):
        given.append(kwargs["mid_block_additional_residual"].abs().sum(dim=(1, 2, 3)))
        return inner(*args, **kwargs)

    pipe.controlnet.register_forward_hook(lambda net, args, out: made.append(out[-1]))
    pipe.unet.forward = heard
    try:
        with gated(pipe, PLAN):
            pipe(**call_of(pipe, guess_mode=guess_mode))
    finally:
        del pipe.unet.forward
    assert len(given) == len(made) == 6
    for step, (rows, output) in enumerate(zip(given, made, strict=True)):
        sums = output.abs().sum(dim=(1, 2, 3))
        if step < 3:
            assert torch.equal(rows[2:], sums[-2:])
        else:
            assert torch.equal(rows, sums[-2:])
            assert (rows > 1).all()


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_with_equal_prompts_guidance_changes_nothing(controlled, call_of, name):
    pipe = controlled(name)
    call = call_of(pipe)
    for key in [key for key in call if key.startswith("negative_")]:
        call[key] = call[key.removeprefix("negative_")]
    with gated(pipe, PLAN):
        guided = pipe(**call, guidance_scale=5.0)[0]
        unguided = pipe(**call, guidance_scale=1.0)[0]
    assert (guided - unguided).abs().max() < 1e-3 * guided.abs().max()


@pytest.mark.parametrize("nets", [(0, 1), (0, 0)])
def test_several_controlnets(controlled, call_of, nets):
    pipe = controlled("sd15", nets)
    call = call_of(pipe, nets=2, controlnet_conditioning_scale=[0.6, 0.4])
    with gated(pipe, PLAN):
        inside, rows = rows_of(pipe.controlnet.nets[1], lambda: pipe(**call)[0])
    assert rows == [4, 4, 4, 2, 2, 2]
    assert inside.isfinite().all()


def test_one_controlnet_twice_keeps_what_each_of_its_calls_stored(controlled, call_of):
    """Twice the same net on the same picture at half the scale is that net once."""
    pipe, twice = controlled("sd15"), controlled("sd15", nets=(0,))
    net = pipe.controlnet
    twice.controlnet = type(twice.controlnet)([net, net])
    once, both = call_of(pipe), call_of(twice, nets=2, controlnet_conditioning_scale=[0.5, 0.5])
    with gated(pipe, PLAN):
        expected = pipe(**once)[0]
    with gated(twice, PLAN) as summary:
        assert (twice(**both)[0] - expected).abs().max() < 1e-4 * expected.abs().max()
    alone = cache_bytes(net, PLAN, 6, 8, 8, 2)
    assert summary.peak_bytes == cache_bytes(pipe.unet, PLAN, 6, 8, 8, 2) + 2 * alone


def test_a_controlnet_beside_animatediff_is_refused_by_name(tiny_models):
    stock = tiny_models("sd15", scheduler="ddim")
    motion = diffusers.UNetMotionModel.from_unet2d(stock.unet)
    pipe = type("Pipe", (), {"scheduler": stock.scheduler})()
    pipe.unet, pipe.controlnet = motion, control_of(stock.unet)
    with pytest.raises(ValueError, match=r"^a ControlNetModel beside UNetMotionModel runs"):
        gated(pipe, PLAN).__enter__()


def test_a_union_of_controlnets(tiny_models, arguments):
    stock = tiny_models("sdxl", scheduler="ddim")
    known = inspect.signature(diffusers.ControlNetUnionModel).parameters
    shape = {key: value for key, value in stock.unet.config.items() if key in known}
    shape |= {"num_trans_channel": 32, "num_trans_head": 4, "num_proj_channel": 32}
    torch.manual_seed(0)
    net = diffusers.ControlNetUnionModel(
        **shape, conditioning_embedding_out_channels=(8, 8, 16, 16)
    )
    parts = {key: value for key, value in stock.components.items() if value is not None}
    pipe = diffusers.StableDiffusionXLControlNetUnionPipeline(
        **parts, controlnet=net.eval(), add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    call = arguments(pipe, 2, height=64, width=64, control_image=[PICTURE], control_mode=[0])
    plain = pipe(**call)[0]
    with pytest.warns(GateNotReached), gated(pipe, GatePlan(1000)):
        assert torch.equal(pipe(**call)[0], plain)
    with gated(pipe, PLAN) as summary:
        _, rows = rows_of(net, lambda: pipe(**call))
    assert rows == summary.rows == [4, 4, 4, 2, 2, 2]
