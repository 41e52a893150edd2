"""A gated call beside the reference's with the same plan, a plain one and DeepCache's.

On tiny models, where Python's overhead is what counts, and on the embedded model. And a mid-size
U-Net with a ControlNet beside it, gated and plain, against what their MACs allow.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import diffusers
import torch

from benchmarks.timing import in_turns, ratio
from tgate_batch.config import Model, Sampling
from tgate_batch.gate import DeepCache, GatePlan, gated
from tgate_batch.models import catalogue
from tgate_batch.models.architecture import CLIP_L, KL_VAE, Architecture, ComponentSpec
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.macs import arm as macs

CONTROLNET = "sd15 with ControlNet"
PLANS = {
    "sd15": GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2),
    "sdxl": GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2),
    "pixart_alpha": GatePlan(15, sp_interval=3, fi_interval=1, warm_up=2),
    "demo": GatePlan(15, sp_interval=3, fi_interval=1, warm_up=2),
}
_PIXELS = {"demo": 64}  # a picture's side; tiny models' are 16
_NEVER = GatePlan(1000)  # gates nothing: what the gate itself costs
_UNET: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 384),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 256,
}


def bench_gate(
    steps: int = 25,
    rounds: int = 9,
    pipelines: Annotated[tuple[str, ...], "default: all"] = (*PLANS, CONTROLNET),
) -> dict[str, dict[str, Any]]:
    """A gated call compared with tgate 1.0.0's, a plain one and DeepCache's, by pipeline.

    ``seconds`` are the median CPU seconds of a call of one image on one thread. ``speedup`` is the
    reference's, a plain call's and DeepCache's time (of U-Nets) over a gated call's.
    ``never_over_plain`` is the time of a plan that gates nothing over a plain call's. Needs the
    reference (``tgate``), a test dependency.
    """
    torch.set_num_threads(1)
    return {
        name: _measure_controlnet(steps, rounds)
        if name == CONTROLNET
        else _measure(name, PLANS[name], steps, rounds)
        for name in pipelines
    }


def _measure(name: str, plan: GatePlan, steps: int, rounds: int) -> dict[str, Any]:
    import tgate

    loaders = {
        "sd15": tgate.TgateSDLoader,
        "sdxl": tgate.TgateSDXLLoader,
        "pixart_alpha": tgate.TgatePixArtAlphaLoader,
        "demo": tgate.TgateSDLoader,
    }
    ours, theirs = _pipeline(name), loaders[name](_pipeline(name))
    side = _PIXELS.get(name, 16)
    call = {"prompt": "a cat", "height": side, "width": side, "num_inference_steps": steps}
    call["output_type"] = "latent"
    if name == "pixart_alpha":
        call |= {"use_resolution_binning": False, "clean_caption": False}
    settings = {key: getattr(plan, key) for key in plan.__dataclass_fields__}

    def gated_call(plan: GatePlan | None, deepcache: DeepCache | None = None) -> None:
        with gated(ours, plan, deepcache=deepcache):
            ours(**call)

    calls: dict[str, Callable[[], Any]] = {
        "ours": partial(gated_call, plan),
        "reference": lambda: theirs.tgate(**call, **settings),
        "plain": partial(gated_call, None),
        "never": partial(gated_call, _NEVER),
    }
    if hasattr(ours, "unet"):
        calls["deepcache"] = partial(gated_call, None, DeepCache())
    seconds = in_turns(calls, rounds, clock=time.process_time, what=f"measuring {name}")
    return {
        "seconds": {key: statistics.median(values) for key, values in seconds.items()},
        "speedup": {
            key: ratio(seconds[key], seconds["ours"])
            for key in calls
            if key not in ("ours", "never")
        },
        "never_over_plain": ratio(seconds["never"], seconds["plain"]),
    }


def _measure_controlnet(steps: int, rounds: int) -> dict[str, Any]:
    """Cross-attention gated at 10 steps, with a ControlNet: the speed-up over plain calls, its

    ``limit`` by MACs, attention included, and the part of it that is ``reached``.
    """
    torch.manual_seed(0)
    plan, side = GatePlan(10), _UNET["sample_size"]
    unet = diffusers.UNet2DConditionModel(**_UNET).eval()
    control = diffusers.ControlNetModel.from_unet(unet).eval()
    bare = dict.fromkeys(("text_encoder", "tokenizer", "feature_extractor", "safety_checker"))
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        unet=unet,
        controlnet=control,
        vae=catalogue.tiny("sd15").vae,
        scheduler=diffusers.DDIMScheduler(steps_offset=1),
        requires_safety_checker=False,
        **bare,
    )
    pipeline.set_progress_bar_config(disable=True)
    call = {
        "prompt_embeds": torch.randn(1, 77, _UNET["cross_attention_dim"]),
        "negative_prompt_embeds": torch.randn(1, 77, _UNET["cross_attention_dim"]),
        "image": torch.rand(1, 3, 8 * side, 8 * side),
        "num_inference_steps": steps,
        "output_type": "latent",
    }

    def draw(plan: GatePlan | None) -> None:
        with gated(pipeline, plan):
            pipeline(**call)

    calls = {"gated": partial(draw, plan), "plain": partial(draw, None)}
    seconds = in_turns(calls, rounds, clock=time.process_time)
    parts = [
        ComponentSpec("diffusers", type(module).__name__, dict(module.config))
        for module in (unet, control)
    ]
    pair = Architecture(parts[0], {"text_encoder": CLIP_L}, KL_VAE, 77, controlnet=parts[1])
    family, size = catalogue.family_of("sd15"), {"height": 8 * side, "width": 8 * side}
    plain, less = (
        macs.count(family, pair, each, None, steps, 7.5, **size).per_image_with_attention
        for each in (None, plan)
    )
    speedup = ratio(seconds["plain"], seconds["gated"])
    limit = plain / less
    return {
        "seconds": {key: statistics.median(values) for key, values in seconds.items()},
        "speedup": {"plain": speedup},
        "limit": limit,
        "reached": speedup["median"] / limit,
    }


def _pipeline(name: str) -> Any:
    if name == "demo":
        return load_pipeline(Model(name=name), catalogue.resolve(name, Sampling()), "cpu")
    pipeline = catalogue.tiny(name)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config
    )
    return pipeline
