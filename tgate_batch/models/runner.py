"""How each family of diffusers pipelines is called: encode once, denoise, decode.

The parts are apart so that arms share the encoded prompts and denoising and decoding are timed
and batched on their own. No pipeline code is repeated here: each part is the pipeline's own.
"""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from tgate_batch.config import Config, Engine, Model, Sampling
from tgate_batch.gate import is_guided
from tgate_batch.models import catalogue, engine
from tgate_batch.models.catalogue import Entry
from tgate_batch.records import Prompt

# What `encode_prompt` returns, in order (diffusers 0.42, pipelines/*/pipeline_*.py).
_ENCODED = {
    "StableDiffusionPipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "StableDiffusionXLPipeline": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    "PixArtAlphaPipeline": (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ),
}
_ENCODED["PixArtSigmaPipeline"] = _ENCODED["PixArtAlphaPipeline"]

Condition = dict[str, Any]  # one prompt's arguments of the pipeline's call


@dataclass(frozen=True)
class Pixels:
    """A batch of finished pictures, on the CPU."""

    values: np.ndarray  # uint8 [n, height, width, 3]; videos [n, frames, height, width, 3]
    finite: np.ndarray  # bool [n]: whether the model made numbers everywhere


@dataclass
class Painter:
    """A loaded pipeline with the run's sampling: conditions in, pixels out."""

    pipeline: Any
    entry: Entry
    sampling: Sampling
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        self.guided = is_guided(self.pipeline, self.sampling.guidance_scale)
        self.device = self.pipeline._execution_device
        vae = self.pipeline.vae
        if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
            vae.to(torch.float32)  # this VAE overflows in half precision
        self._negative: Condition | None = None

    @torch.inference_mode()
    def encode(self, prompts: list[Prompt]) -> list[Condition]:
        """One condition a prompt, kept in main memory until its batch comes."""
        if self.entry.draws_video:
            return [{"image": _conditioning(prompt, self.sampling)} for prompt in prompts]
        if not self.engine.offload_text_encoder:
            return self._encoded(prompts)
        encoders = [
            module
            for name, module in self.pipeline.components.items()
            if name.startswith("text_encoder") and module is not None
        ]
        for module in encoders:
            module.to(self.device)
        try:
            return self._encoded(prompts)
        finally:
            for module in encoders:
                module.to("cpu")

    def _encoded(self, prompts: list[Prompt]) -> list[Condition]:
        if self.guided and self._negative is None:
            negative = self.sampling.negative_prompt or None  # None: the pipeline's own default
            encoded = self._encode(
                [""], guided=True, **({"negative_prompt": negative} if negative else {})
            )
            self._negative = {
                name: value for name, value in encoded.items() if name.startswith("negative_")
            }
        positive = self._encode([prompt.text for prompt in prompts], guided=False)
        return [
            {name: value[i : i + 1].cpu() for name, value in positive.items()}
            for i in range(len(prompts))
        ]

    def _encode(self, texts: list[str], guided: bool, **options: Any) -> dict[str, torch.Tensor]:
        outputs = self.pipeline.encode_prompt(
            prompt=texts,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            **options,
        )
        names = _ENCODED[self.entry.pipeline]
        return {
            name: value for name, value in zip(names, outputs, strict=True) if value is not None
        }

    @torch.inference_mode()
    def denoise(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        """Final latents, one row a condition; the noise of a row is its seed's alone."""
        with engine.attention(self.engine.attention):
            return self._denoised(conditions, seeds)

    def _denoised(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        common = {
            "num_inference_steps": self.sampling.steps,
            "height": self.sampling.height,
            "width": self.sampling.width,
            "generator": generators,
            "output_type": "latent",
            **self.entry.call,
        }
        if self.entry.draws_video:
            pictures = [condition["image"] for condition in conditions]
            return self.pipeline(
                image=pictures, max_guidance_scale=self.sampling.guidance_scale, **common
            ).frames
        arguments = {
            name: torch.cat([condition[name] for condition in conditions]).to(self.device)
            for name in conditions[0]
        }
        if self._negative is not None:
            for name, value in self._negative.items():
                arguments[name] = value.expand(len(conditions), *value.shape[1:])
        return self.pipeline(
            negative_prompt=None, guidance_scale=self.sampling.guidance_scale, **arguments, **common
        ).images

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Pixels:
        """Final latents to pictures, a few at a time where the engine says so."""
        parts = latents.split(self.engine.decode_batch_size or len(latents))
        pixels = torch.cat([self._decoded(part) for part in parts])
        finite = pixels.isfinite().flatten(1).all(dim=1)
        # Rounded as diffusers' image processor does, but before the copy off the device.
        values = (pixels.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return Pixels(values.cpu().numpy(), finite.cpu().numpy())

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels in -1..1, float32, channels last."""
        if self.entry.draws_video:
            frames = self.pipeline.decode_latents(latents, latents.shape[1], decode_chunk_size=8)
            return frames.permute(0, 2, 3, 4, 1).float()
        vae = self.pipeline.vae
        latents = _unscaled(latents.to(vae.dtype), vae.config)
        return vae.decode(latents, return_dict=False)[0].permute(0, 2, 3, 1).float()


def open_painter(model: Model, config: Config) -> Painter:
    """Loads the model and makes it ready for the run; raises UserError where it cannot be had."""
    device = "cuda" if config.workers.gpus_each > 0 else "cpu"
    sampling = catalogue.resolve(model.name, config.sampling)
    pipeline = catalogue.load(model, sampling, device, model.dtype)
    engine.prepare(pipeline, config.engine)
    return Painter(pipeline, catalogue.entry(model.name), sampling, config.engine)


def _unscaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """The VAE's own latents, from the denoiser's of unit variance (SDXL may carry a mean too)."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    latents = latents / config.scaling_factor
    if mean is None or std is None:
        return latents
    shape = (1, -1, 1, 1)
    return latents * latents.new_tensor(std).view(shape) + latents.new_tensor(mean).view(shape)


def _conditioning(prompt: Prompt, sampling: Sampling) -> Image.Image:
    if prompt.image is None:
        raise ValueError("this model draws from a picture, and the prompt has none")
    with Image.open(io.BytesIO(prompt.image)) as picture:
        return picture.convert("RGB").resize((sampling.width, sampling.height))
