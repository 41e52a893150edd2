"""The catalogue: a model's name -> pipeline class, checkpoint, documented settings; and loading it.

Checkpoints and settings are those of T-GATE's documents (github.com/HaozheLiu-ST/T-GATE, README)
and of the models' own cards.
"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_batch import demo
from tgate_batch.config import Model, Sampling
from tgate_batch.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue. ``height``, ``width`` in pixels."""

    name: str
    pipeline: str  # a diffusers pipeline class
    checkpoint: str  # a hub id, or a folder for the embedded model
    steps: int
    guidance_scale: float
    height: int
    width: int
    scheduler: str | None = None  # None: the checkpoint's own
    variant: str | None = None  # of the hub's files, e.g. the half-precision ones
    unet: str | None = None  # a distilled denoiser that replaces the checkpoint's
    options: dict[str, Any] = field(default_factory=dict)  # further from_pretrained arguments
    call: dict[str, Any] = field(default_factory=dict)  # further arguments of every call

    @property
    def draws_video(self) -> bool:
        return self.pipeline == "StableVideoDiffusionPipeline"


_NO_CHECKER = {"safety_checker": None, "requires_safety_checker": False}

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "demo",
            "StableDiffusionPipeline",
            str(demo.PATH),
            steps=25,
            guidance_scale=4.0,
            height=64,
            width=64,
            options=_NO_CHECKER,
        ),
        Entry(
            "sd15",
            "StableDiffusionPipeline",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            steps=25,
            guidance_scale=7.5,
            height=512,
            width=512,
            scheduler="DPMSolverMultistepScheduler",
            variant="fp16",
            options=_NO_CHECKER,
        ),
        Entry(
            "sd21",
            "StableDiffusionPipeline",
            "stabilityai/stable-diffusion-2-1",
            steps=25,
            guidance_scale=7.5,
            height=768,
            width=768,
            scheduler="DPMSolverMultistepScheduler",
            variant="fp16",
        ),
        Entry(
            "sdxl",
            "StableDiffusionXLPipeline",
            "stabilityai/stable-diffusion-xl-base-1.0",
            steps=25,
            guidance_scale=7.5,
            height=1024,
            width=1024,
            scheduler="DPMSolverMultistepScheduler",
            variant="fp16",
            options={"add_watermarker": False},
        ),
        Entry(
            "pixart_alpha",
            "PixArtAlphaPipeline",
            "PixArt-alpha/PixArt-XL-2-1024-MS",
            steps=25,
            guidance_scale=4.5,
            height=1024,
            width=1024,
            call={"clean_caption": False, "use_resolution_binning": False},
        ),
        Entry(
            "pixart_sigma",
            "PixArtSigmaPipeline",
            "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            steps=25,
            guidance_scale=4.5,
            height=1024,
            width=1024,
            call={"clean_caption": False, "use_resolution_binning": False},
        ),
        Entry(
            "lcm_sdxl",
            "StableDiffusionXLPipeline",
            "stabilityai/stable-diffusion-xl-base-1.0",
            steps=4,
            guidance_scale=8.0,
            height=1024,
            width=1024,
            scheduler="LCMScheduler",
            variant="fp16",
            unet="latent-consistency/lcm-sdxl",
            options={"add_watermarker": False},
        ),
        Entry(
            "lcm_pixart_alpha",
            "PixArtAlphaPipeline",
            "PixArt-alpha/PixArt-LCM-XL-2-1024-MS",
            steps=4,
            guidance_scale=0.0,
            height=1024,
            width=1024,
            call={"clean_caption": False, "use_resolution_binning": False},
        ),
        Entry(
            "svd",
            "StableVideoDiffusionPipeline",
            "stabilityai/stable-video-diffusion-img2vid-xt",
            steps=25,
            guidance_scale=3.0,
            height=576,
            width=1024,
            variant="fp16",
        ),
    )
}


def entry(name: str) -> Entry:
    """The catalogue's row; raises UserError with the nearest known name."""
    try:
        return CATALOGUE[name]
    except KeyError:
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(CATALOGUE)}"
        raise UserError(f"models: unknown model {name!r}; {hint}") from None


def resolve(name: str, sampling: Sampling) -> Sampling:
    """The sampling with the model's documented setting wherever the config leaves it open."""
    row = entry(name)
    documented = {
        key: getattr(row, key)
        for key in ("steps", "guidance_scale", "height", "width", "scheduler")
        if getattr(sampling, key) is None
    }
    return sampling.model_copy(update=documented)


def checkpoint(model: Model) -> str:
    """Where the model is loaded from; raises UserError for a folder that is not there."""
    path = model.path or entry(model.name).checkpoint
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not (Path(path).expanduser() / "model_index.json").is_file():
        raise UserError(
            f"models: {model.name}: {path} is not a diffusers folder (it has no model_index.json)"
        )
    return str(Path(path).expanduser()) if Path(path).expanduser().exists() else path


def load(model: Model, sampling: Sampling, device: str, dtype: str = "auto") -> Any:
    """Loads the pipeline, safetensors only and never remote code, onto ``device``.

    Raises UserError where the checkpoint cannot be had or holds something else.
    """
    import diffusers
    import torch

    row = entry(model.name)
    where = checkpoint(model)
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    common = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    options = dict(row.options)
    try:
        if model.path is None and row.unet is not None:
            options["unet"] = diffusers.UNet2DConditionModel.from_pretrained(row.unet, **common)
        if model.path is None and row.variant is not None and dtype == "float16":
            options["variant"] = row.variant
        pipeline = getattr(diffusers, row.pipeline).from_pretrained(where, **common, **options)
    except Exception as error:  # diffusers raises nearly anything for a damaged folder
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"models: {model.name} cannot be loaded from {where}: {reason}") from None
    if sampling.scheduler is not None:
        pipeline.scheduler = _scheduler(sampling.scheduler, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _scheduler(name: str, current: Any) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise UserError(
            f"sampling.scheduler: diffusers has no scheduler {name!r}; e.g. DDIMScheduler, "
            "EulerDiscreteScheduler, DPMSolverMultistepScheduler"
        )
    return kind.from_config(current.config)
