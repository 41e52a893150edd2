"""The description of a family of pipelines; each family has one file in this folder.

Neither this module nor the top level of a family's file imports torch or diffusers, so that a
config is checked quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from tgate_batch.config import ResolvedSampling
from tgate_batch.models.architecture import Architecture, ComponentSpec
from tgate_batch.records import Prompt
from tgate_batch.storage.images import open_upright

if TYPE_CHECKING:
    import torch
    from PIL import Image

ComponentConfig = Mapping[str, Any]  # of a denoiser, an encoder or a VAE
Condition = dict[str, Any]  # one prompt's arguments of the pipeline's call
SHAPE = "shape"  # of a condition: rows of a batch have equal ones


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue: a checkpoint and its documented settings.

    ``architecture`` is what it is built of, None: read from the checkpoint's folder. ``tiny`` makes
    its tiny model; None: there is none. ``license`` is that of the checkpoint's weights, and of
    ``unet`` where there is one, as their cards name it; None: not known. ``half`` is the dtype that
    stands for half precision: models made in bfloat16 overflow in float16. ``float32`` names parts
    that compute in float32 whatever the others do. ``distilled``: a model of a few steps.
    """

    name: str
    pipeline: str  # a class of diffusers, or the dotted name of one's own
    checkpoint: str  # a hub id, or a folder for the embedded model
    steps: int
    guidance_scale: float
    height: int  # pixels
    width: int  # pixels
    scheduler: str | None = None  # None: the checkpoint's own
    variant: str | None = None  # of the hub's files, e.g. the half-precision ones
    unet: str | None = None  # hub id of a distilled denoiser that replaces the checkpoint's
    options: Mapping[str, Any] = field(default_factory=dict)  # further from_pretrained arguments
    architecture: Architecture | None = None
    tiny: Callable[[], Any] | None = None
    license: str | None = None
    half: str = "float16"
    float32: tuple[str, ...] = ()
    distilled: bool = False


def pipeline_class(row: Entry) -> Any:
    """Returns the row's pipeline class, from diffusers unless the name is dotted."""
    module, _, kind = row.pipeline.rpartition(".")
    return getattr(import_module(module or "diffusers"), kind)


def empty(*shape: int) -> torch.Tensor:
    """A float32 tensor of this shape on the meta device: it has a size and no values."""
    import torch

    return torch.empty(shape, device="meta")


def clip_tokens(row: Entry, encoders: Mapping[str, ComponentSpec]) -> int:
    """Caption tokens of a CLIP text encoder: captions are padded to its whole length."""
    longest = 77  # CLIP's own
    text = encoders.get("text_encoder")
    return longest if text is None else text.config.get("max_position_embeddings", longest)


def text_inputs(config: ComponentConfig, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """A text encoder's inputs on the meta device: ``input_ids``, int64 [batch, tokens]."""
    import torch

    return {"input_ids": torch.zeros(batch, tokens, dtype=torch.long, device="meta")}


def image_latents(architecture: Architecture, height: int, width: int) -> dict[str, Any]:
    """``decode``'s inputs for one picture on the meta device: ``z`` [1, channels, height, width].

    ``height`` and ``width`` are those of the latents.
    """
    return {"z": empty(1, architecture.vae.config.get("latent_channels", 4), height, width)}


def first_image(prompt: Prompt, sampling: ResolvedSampling) -> Image.Image:
    """Returns the prompt's image upright, in RGB, at the size to render.

    Raises ValueError if the prompt has no image, UserError if it cannot be read.
    """
    if prompt.image is None:
        raise ValueError("this model needs an input image, but the prompt has none")
    return open_upright(prompt.image).resize((sampling.width, sampling.height))


def decode_images(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """Final latents [n, channels, h, w] -> pixels in -1..1, float32 [n, height, width, 3]."""
    vae = pipeline.vae
    latents = _unscaled(latents.to(vae.dtype), vae.config)
    return vae.decode(latents, return_dict=False)[0].permute(0, 2, 3, 1).float()


def _unscaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """The VAE's own latents, from the denoiser's of unit variance (SDXL may carry a mean too)."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    latents = latents / config.scaling_factor
    if mean is None or std is None:
        return latents
    shape = (1, -1, 1, 1)
    return latents * latents.new_tensor(std).view(shape) + latents.new_tensor(mean).view(shape)


@dataclass(frozen=True, eq=False)
class Family:
    """How pipelines of one kind are called, counted and built; the defaults are for images.

    - ``denoiser``: the pipeline's attribute that holds it, ``unet`` or ``transformer``.
    - ``inputs(config, batch, tokens, height, width)``: the denoiser's arguments on the meta device,
      for latents of this height and width; ``config`` is the denoiser's own, whole.
    - ``encoded``: what ``encode_prompt`` returns, in order. Each name is an argument of the
      pipeline's call, with the shape of one row from (the denoiser's config, caption tokens).
    - ``condition(prompt, sampling)``: the call's arguments of one prompt where it is no text that
      ``encode_prompt`` takes.
    - ``call``: further arguments of every call, and of ``encode_prompt`` where it takes them;
      ``guidance`` is the name of the guidance scale's.
    - ``decode(pipeline, latents)``: pixels in -1..1, float32 [n, height, width, 3], of videos
      [n, frames, height, width, 3].
    - ``tokens(row, encoders)``: how many tokens the denoiser attends to.
    - ``encoder_inputs(config, batch, tokens)``, ``decoder_inputs(architecture, height, width)``:
      arguments of an encoder and of the VAE's ``decode`` on the meta device.
    - ``mixes_guidance``: its pipelines only multiply tensors by the guidance scale, so rows of
      differing scales may share a batch.
    - ``from_pictures``: diffusers has an image-to-image pipeline of the family that takes encoded
      prompts (in 0.42 that of Kolors forgets the pooled ones).
    - ``multiple``: pixels of which height and width have to be a multiple.
    - ``bare``: arguments that the pipeline's class needs beside its denoiser and scheduler, where
      it is built without text encoder and VAE.
    - ``loras``, ``single_files``: whether diffusers loads LoRAs into its pipelines, and a pipeline
      from one file.
    - ``runner``: ``module:Class`` of a ``PipelineRunner`` of the family's own; None: that class.
    """

    entries: tuple[Entry, ...]
    denoiser: str
    inputs: Callable[[ComponentConfig, int, int, int, int], dict[str, Any]]
    encoded: Mapping[str, Callable[[ComponentConfig, int], tuple[int, ...]]] = field(
        default_factory=dict
    )
    condition: Callable[[Prompt, ResolvedSampling], Condition] | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    draws: Literal["picture", "video"] = "picture"
    frames_per_second: int = 7  # of a video that is shown
    decode: Callable[[Any, torch.Tensor], torch.Tensor] = decode_images
    tokens: Callable[[Entry, Mapping[str, ComponentSpec]], int] = clip_tokens
    encoder_inputs: Callable[[ComponentConfig, int, int], dict[str, Any]] = text_inputs
    decoder_inputs: Callable[[Architecture, int, int], dict[str, Any]] = image_latents
    bare: Mapping[str, Any] = field(default_factory=dict)
    loras: bool = True
    single_files: bool = False
    mixes_guidance: bool = False
    from_pictures: bool = False
    multiple: int = 8
    runner: str | None = None

    @property
    def is_generic(self) -> bool:
        """True if the family describes no class, so that everything is read from the pipeline."""
        return self.runner is not None
