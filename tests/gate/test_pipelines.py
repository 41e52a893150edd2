"""The gate on pipelines that it has never heard of, and beside what else changes a denoiser."""

import diffusers
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image

from tgate_batch.gate import DeepCache, GatePlan, denoiser_of, gated

PLAN = GatePlan(3, sp_interval=2, fi_interval=2, warm_up=0)
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).convert("RGB")
MASK = Image.new("L", (64, 64), 0)
MASK.paste(255, (16, 16, 48, 48))


def draw(pipe, call):
    return pipe(**call, generator=torch.Generator().manual_seed(0))[0]


def rows_at_every_call(pipe, call, plan=PLAN, **options):
    """The result, and how many rows the denoiser's body ran on at each of its calls."""
    rows = []
    body = pipe.unet.conv_in if hasattr(pipe, "unet") else pipe.transformer.pos_embed
    handle = body.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    try:
        with gated(pipe, plan, **options):
            result = draw(pipe, call)
    finally:
        handle.remove()
    assert result.isfinite().all()
    return result, rows


def check(pipe, call, rows):
    """Gated as planned, plain before and after, and a plan that gates nothing changes nothing."""
    plain = draw(pipe, call)
    result, seen = rows_at_every_call(pipe, call)
    assert seen == rows
    assert not torch.equal(result, plain)
    with gated(pipe, GatePlan(1000)):
        assert torch.equal(draw(pipe, call), plain)
    assert torch.equal(draw(pipe, call), plain)


def text(arguments, pipe, batch):
    call = arguments(pipe, batch)
    del call["latents"]
    return call


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("batch", [1, 2])
def test_image_to_image(tiny_models, arguments, name, batch):
    stock = tiny_models(name, scheduler="ddim")
    pipe = diffusers.AutoPipelineForImage2Image.from_pipe(stock)
    pipe.set_progress_bar_config(disable=True)
    call = text(arguments, stock, batch) | {"image": [PICTURE] * batch, "strength": 0.7}
    check(pipe, call, [2 * batch, 2 * batch, 2 * batch, batch])  # 4 of 6 steps


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_inpainting(tiny_models, arguments, name):
    stock = tiny_models(name, scheduler="ddim")
    pipe = diffusers.AutoPipelineForInpainting.from_pipe(stock)
    pipe.set_progress_bar_config(disable=True)
    call = text(arguments, stock, 2) | {
        "image": PICTURE,
        "mask_image": MASK,
        "strength": 1.0,
        "height": 64,
        "width": 64,
    }
    check(pipe, call, [4, 4, 4, 2, 2, 2])


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_ip_adapter(tiny_models, arguments, name):
    pipe = tiny_models(name, fresh=True, scheduler="ddim")
    give_ip_adapter(pipe.unet)
    call = arguments(pipe, 2)
    generator = torch.Generator().manual_seed(5)
    call["ip_adapter_image_embeds"] = [torch.randn(4, 1, 16, generator=generator)]
    check(pipe, call, [4, 4, 4, 2, 2, 2])
    pipe.set_ip_adapter_scale(0.0)
    without = rows_at_every_call(pipe, call)[0]
    pipe.set_ip_adapter_scale(1.0)
    assert not torch.equal(without, rows_at_every_call(pipe, call)[0])


def give_ip_adapter(unet):
    """A random IP-Adapter of 4 tokens from a 16-wide picture embedding."""
    from diffusers.models.attention_processor import Attention

    width, generator = unet.config.cross_attention_dim, torch.Generator().manual_seed(4)

    def noise(*shape):
        return 0.2 * torch.randn(*shape, generator=generator)

    layers = [m for n, m in unet.named_modules() if isinstance(m, Attention) and "attn2" in n]
    adapter = {}
    for number, layer in enumerate(layers):
        size = layer.to_k.out_features
        for part in ("k", "v"):
            adapter[f"{2 * number + 1}.to_{part}_ip.weight"] = noise(size, width)
    projection = {
        "proj.weight": noise(4 * width, 16),
        "proj.bias": noise(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha"])
def test_lora(tiny_models, arguments, name):
    pipe = tiny_models(name, fresh=True, scheduler="ddim")
    call = arguments(pipe, 2)
    without = rows_at_every_call(pipe, call)[0]
    torch.manual_seed(0)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    lora = LoraConfig(r=2, target_modules=layers, init_lora_weights=False)
    inject_adapter_in_model(lora, denoiser_of(pipe))
    check(pipe, call, [4, 4, 4, 2, 2, 2])
    assert not torch.equal(without, rows_at_every_call(pipe, call)[0])


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha", "pixart_sigma"])
def test_several_images_a_prompt(tiny_models, arguments, name):
    pipe = tiny_models(name, scheduler="ddim")
    call = text(arguments, pipe, 2) | {"num_images_per_prompt": 2}
    check(pipe, (call), [8, 8, 8, 4, 4, 4])


def test_guidance_cutoff_of_diffusers(tiny_models, arguments):
    from diffusers.callbacks import SDCFGCutoffCallback

    pipe = tiny_models("sd15", scheduler="ddim")
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    call = arguments(pipe, 1) | {"callback_on_step_end": cutoff}
    assert rows_at_every_call(pipe, call)[1] == [2, 2, 1, 1, 1, 1]


def test_dictionary_outputs_are_doubled(tiny_models):
    pipe = tiny_models("sd15", scheduler="ddim")
    pipe.scheduler.set_timesteps(2)
    sample, states = torch.zeros(2, 4, 8, 8), torch.zeros(2, 7, 32)
    pipe._guidance_scale = 7.5
    with gated(pipe, GatePlan(1)) as summary:
        shapes = []
        for t in pipe.scheduler.timesteps:
            shapes.append(pipe.unet(sample, t, states).sample.shape)
            pipe.scheduler.step(sample[:1], t, sample[:1])
    assert shapes == [sample.shape] * 2
    assert summary.rows == [2, 1]


def test_a_call_too_many_is_refused(tiny_models):
    pipe = tiny_models("sd15", scheduler="ddim")
    pipe.scheduler.set_timesteps(2)
    pipe._guidance_scale = 7.5
    sample, states = torch.zeros(2, 4, 8, 8), torch.zeros(2, 7, 32)
    with gated(pipe, GatePlan(1)):
        for t in pipe.scheduler.timesteps:
            pipe.unet(sample, t, states)
            pipe.scheduler.step(sample[:1], t, sample[:1])
        with pytest.raises(ValueError, match=r"^DDIMScheduler set 2 timesteps .* use DDIM"):
            pipe.unet(sample, 1, states)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("plan", [None, GatePlan(3)])
def test_deepcache_counts_calls_not_timesteps(tiny_models, arguments, scheduler, plan):
    """Repeated timesteps (PNDM, Heun) confuse the helper alone; here a cycle is three calls."""
    pipe = tiny_models("sd15", fresh=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    full = []
    handle = pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: full.append(calls[0]))
    calls = [-1]
    count = pipe.unet.conv_in.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    with gated(pipe, plan, deepcache=DeepCache(3, 0)):
        for _ in range(2):
            calls[0] = -1
            pipe(**arguments(pipe, 1, steps=6))
    handle.remove()
    count.remove()
    expected = {
        ("PNDMScheduler", False): [0, 3, 6],  # 7 calls
        ("PNDMScheduler", True): [0, 3, 4],  # steps 2 and 3 are calls 3 and 4
        ("HeunDiscreteScheduler", False): [0, 3, 6, 9],  # 11 calls
        ("HeunDiscreteScheduler", True): [0, 3, 4, 6, 9],  # steps 2 and 3 begin at calls 4 and 6
    }
    assert full == 2 * expected[scheduler, plan is not None]
