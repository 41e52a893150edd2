"""Pipelines of the catalogue with random weights: speed needs no others, and no download."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import diffusers
import torch

from tgate_batch.errors import UserError
from tgate_batch.gate import denoiser_of
from tgate_batch.models.architecture import Architecture, ComponentSpec
from tgate_batch.models.checkpoint import pipeline_class
from tgate_batch.models.family import Entry, Family

_PIXART = {
    "num_layers": 12,
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "cross_attention_dim": 512,
    "sample_size": 64,
    "use_additional_conditions": False,
}
# Of the same kinds, small enough for a CPU: some 50 million parameters.
MID_SIZE: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (96, 192, 384, 384)},
    "sdxl": {
        "block_out_channels": (96, 192, 384),
        "attention_head_dim": (3, 6, 12),
        "transformer_layers_per_block": (1, 1, 2),
    },
    "pixart_alpha": _PIXART,
    "pixart_sigma": _PIXART,
}


def architecture_of(row: Entry, family: Family, mid_size: bool) -> Architecture:
    """The row's networks, or those with a smaller denoiser; raises UserError where it has none."""
    whole = row.architecture
    if family.draws == "video" or whole is None:
        raise UserError(f"bench: {row.name!r} has no text-to-image architecture to build")
    if not mid_size:
        return whole
    if row.name not in MID_SIZE:
        raise UserError(f"bench: no mid-size {row.name!r}; one of: {', '.join(MID_SIZE)}")
    denoiser = whole.denoiser
    small = ComponentSpec(
        denoiser.library, denoiser.class_name, {**denoiser.config, **MID_SIZE[row.name]}
    )
    return replace(whole, denoiser=small)


def built(part: ComponentSpec, device: str, dtype: torch.dtype) -> Any:
    """One network with weights from a fixed seed, made on the device."""
    torch.manual_seed(0)
    kind = getattr(import_module(part.library), part.class_name)
    with torch.device(device):
        if part.library == "transformers":
            network = kind(kind.config_class(**part.config))
        else:
            network = kind.from_config(dict(part.config))
    return torch.nn.Module.to(network.eval(), dtype)  # diffusers' own warns of every dtype


def pipeline(
    row: Entry, family: Family, architecture: Architecture, device: str, dtype: torch.dtype
) -> Any:
    """The pipeline with nothing but its denoiser and a scheduler."""
    scheduler: Any = diffusers.DPMSolverMultistepScheduler(steps_offset=1)
    if row.scheduler == "LCMScheduler":
        scheduler = diffusers.LCMScheduler()
    denoiser = built(architecture.denoiser, device, dtype)
    pipe = pipeline_class(row)(**{family.denoiser: denoiser, "scheduler": scheduler, **family.bare})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(
    pipe: Any, family: Family, architecture: Architecture, batch: int
) -> dict[str, torch.Tensor]:
    """Random encoded prompts of ``batch`` pictures, by the argument of the pipeline's call."""
    denoiser = denoiser_of(pipe)
    where = {"device": denoiser.device, "dtype": denoiser.dtype}
    found = {}
    for name, shape in family.encoded.items():
        values = torch.ones if name.endswith("_mask") else torch.randn
        found[name] = values(batch, *shape(denoiser.config, architecture.tokens), **where)
    return found


def call(
    pipe: Any,
    family: Family,
    given: dict[str, torch.Tensor],
    steps: int,
    guidance: float,
    size: tuple[int, int],
) -> Callable[..., Any]:
    """The pipeline's call on encoded prompts, to its final latents; ``size`` in pixels."""
    return partial(
        pipe,
        **given,
        **family.call,
        **{family.guidance: guidance},
        num_inference_steps=steps,
        height=size[0],
        width=size[1],
        output_type="latent",
    )
