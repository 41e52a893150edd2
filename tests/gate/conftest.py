"""Tiny models for the gate's tests, and calling them the same way every time."""

import copy
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from tgate_batch.models import catalogue

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpm": diffusers.DPMSolverMultistepScheduler,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_models():
    """``tiny_models(name)`` is shared; ``tiny_models(name, fresh=True)`` is a copy of one's own."""
    made: dict[str, Any] = {}
    own: dict[str, Any] = {}

    def get(name: str, fresh: bool = False, scheduler: str | None = None) -> Any:
        if name not in made:
            made[name] = catalogue.tiny(name)
            own[name] = made[name].scheduler
        pipe = copy.deepcopy(made[name]) if fresh else made[name]
        kind = type(own[name]) if scheduler is None else SCHEDULERS[scheduler]
        pipe.scheduler = kind.from_config(own[name].config)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return get


@pytest.fixture(scope="session")
def arguments():
    """``arguments(pipe, batch, steps)``: a pipeline call of 8 x 8 latents, text already encoded.

    Row ``i`` of every input depends on ``i`` and ``seed`` alone.
    """

    def make(pipe: Any, batch: int = 1, steps: int = 6, seed: int = 0, **more: Any) -> dict:
        rows = [_row(pipe, 1000 * seed + index) for index in range(batch)]
        call = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        if isinstance(pipe, diffusers.StableVideoDiffusionPipeline):
            pictures = (call.pop("image").numpy() * 255).astype("uint8")
            call["image"] = [Image.fromarray(picture) for picture in pictures]
            call |= {"num_frames": 2, "height": 64, "width": 64}
        elif hasattr(pipe, "transformer"):
            call |= {"height": 64, "width": 64, "use_resolution_binning": False}
            call |= {"negative_prompt": None}
        call |= {"num_inference_steps": steps, "output_type": "latent"}
        return call | more

    return make


def _row(pipe: Any, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator)

    if isinstance(pipe, diffusers.StableVideoDiffusionPipeline):
        return {"image": noise(64, 64, 3).clamp(0, 1), "latents": noise(2, 4, 8, 8)}
    row = {"latents": noise(4, 8, 8)}
    width = 32 if hasattr(pipe, "transformer") else pipe.unet.config.cross_attention_dim
    for name in ("prompt", "negative_prompt"):
        row[f"{name}_embeds"] = noise(7, width)
        if hasattr(pipe, "text_encoder_2"):
            prefix = name.removesuffix("prompt")
            row[f"{prefix}pooled_prompt_embeds"] = noise(32)
        if hasattr(pipe, "transformer"):
            row[f"{name}_attention_mask"] = (torch.arange(7)[None] < 3 + seed % 4).float()
    return row
