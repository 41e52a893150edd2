"""Computes how many bytes of output a plan stores, before anything runs."""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch

from tgate_batch.gate.layers import blocks
from tgate_batch.gate.plan import GatePlan, Plan, SelfAttentionInterval
from tgate_batch.gate.supported_denoisers import find_denoiser
from tgate_batch.gate.table import Action


def cache_bytes(
    denoiser: Any,
    plan: Plan,
    steps: int,
    height: int,
    width: int,
    images: int = 1,
    guided: bool = True,
    frames: int = 1,
    dtype: torch.dtype | None = None,
) -> int:
    """Returns the peak bytes of stored output in one pipeline call of ``images`` images.

    ``height``, ``width`` and ``frames`` are the latents'; ``dtype`` is the compute type, the
    denoiser's if None. Weights may be on the meta device. Counted for one denoiser call a step. Not
    included: DeepCache's features, and the output that a ControlNet stores (call this function
    again with it as ``denoiser``).
    """
    values = {"cross": 0, "self_": 0}  # of one picture and branch
    if plan.part(GatePlan) is not None or plan.part(SelfAttentionInterval) is not None:
        for block, tokens in _tokens(denoiser, frames, height, width):
            for layer in (block.attn1, block.attn2):
                name = "cross" if layer.is_cross_attention else "self_"
                values[name] += tokens * layer.to_out[0].out_features
    output = getattr(denoiser.config, "out_channels", 0) * frames * height * width
    kind = find_denoiser(denoiser, attention=False)
    by_branch = kind is not None and kind.branch_a_call
    branches = 2 if guided else 1
    stored, peak = {"cross": 0, "self_": 0}, 0
    table, outputs, difference = plan.schedule(steps), set[int](), 0
    for step, actions in enumerate(table):
        if actions.output is Action.STORE:
            outputs.add(step)
            outputs &= {source for later in table[step + 1 :] for source, _ in later.sources}
        if actions.is_forecast:
            continue
        waits = step == 0 or by_branch  # with its mean for the step
        whole = actions.guided and (waits or not actions.mean)
        for name in stored:
            action = getattr(actions, name)
            if action is Action.STORE:
                stored[name] = values[name] * (branches if whole else 1)
            elif action is Action.COMPUTE:
                stored[name] = 0
            elif not actions.guided:  # of the branch that runs
                stored[name] = min(stored[name], values[name])
        apart = output * (len(outputs) * branches + difference)
        peak = max(peak, sum(stored.values()) + apart)
        difference = difference or int(guided and actions.difference is Action.STORE)
        if actions.mean:
            stored = {name: min(size, values[name]) for name, size in stored.items()}
    used: Any = dtype or denoiser.dtype
    return peak * images * used.itemsize


def _tokens(module: Any, frames: int, height: int, width: int) -> Iterator[tuple[Any, int]]:
    """Yields every gated block with the number of positions in its layers' output."""
    if not hasattr(module, "down_blocks"):
        patch = module.config.patch_size
        sides = (1, patch, patch) if isinstance(patch, int) else patch
        of_frame = (height // sides[1]) * (width // sides[2])
        yield from ((block, frames // sides[0] * of_frame) for block in blocks(module))
        return
    size, sizes = (height, width), []
    for part in module.down_blocks:
        sizes.append(size)
        yield from ((block, frames * size[0] * size[1]) for block in blocks(part))
        if part.downsamplers is not None:
            size = ceil(size[0] / 2), ceil(size[1] / 2)
    ups = zip(getattr(module, "up_blocks", []), reversed(sizes), strict=False)
    for part, (rows, columns) in [(module.mid_block, size), *ups]:
        if part is not None:
            yield from ((block, frames * rows * columns) for block in blocks(part))
