"""How many bytes of attention output a plan keeps, before anything runs."""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from tgate_batch.gate.plan import Action, GatePlan


def cache_bytes(
    denoiser: torch.nn.Module,
    plan: GatePlan,
    steps: int,
    height: int,
    width: int,
    images: int = 1,
    guided: bool = True,
    frames: int = 1,
    dtype: torch.dtype | None = None,
) -> int:
    """Peak bytes of stored attention output in one pipeline call of ``images`` pictures.

    ``height`` and ``width`` are those of the latents; ``frames`` a video's; ``dtype`` what the
    denoiser computes in, its own if None. Weights may be on the meta device. Features that
    DeepCache keeps come on top.
    """
    values = {"cross": 0, "self_": 0}  # of one picture and branch
    for layer, tokens in _tokens(denoiser, height, width):
        kind = "cross" if layer.is_cross_attention else "self_"
        values[kind] += tokens * frames * layer.to_out[0].out_features
    held, peak = {"cross": 0, "self_": 0}, 0
    for actions in plan.schedule(steps):
        rows = images * (2 if guided and actions.guided and not actions.mean else 1)
        for kind in held:
            action = getattr(actions, kind)
            if action is Action.STORE:
                held[kind] = values[kind] * rows
            elif action is Action.COMPUTE:
                held[kind] = 0
        peak = max(peak, sum(held.values()))
    used: Any = dtype or denoiser.dtype
    return peak * used.itemsize


def _tokens(denoiser: Any, height: int, width: int) -> Iterator[tuple[Any, int]]:
    """Every attention layer with the number of positions in its output, a frame."""
    if not hasattr(denoiser, "down_blocks"):
        patch = denoiser.config.patch_size
        yield from _layers(denoiser, (height // patch) * (width // patch))
        return
    size, sizes = (height, width), []
    for block in denoiser.down_blocks:
        sizes.append(size)
        yield from _layers(block, size[0] * size[1])
        if block.downsamplers is not None:
            size = ceil(size[0] / 2), ceil(size[1] / 2)
    yield from _layers(denoiser.mid_block, size[0] * size[1])
    for block, size in zip(denoiser.up_blocks, reversed(sizes), strict=True):
        yield from _layers(block, size[0] * size[1])


def _layers(module: torch.nn.Module, tokens: int) -> Iterator[tuple[Any, int]]:
    return ((layer, tokens) for layer in module.modules() if isinstance(layer, Attention))
