"""How each family of diffusers pipelines is called: encode once, denoise, decode.

The parts are apart so that arms share the encoded prompts and denoising and decoding are timed
and batched on their own. No pipeline code is repeated here: each part is the pipeline's own.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from tgate_batch.config import Sampling
from tgate_batch.gate import is_guided
from tgate_batch.models import Entry
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


@dataclass
class Painter:
    """A loaded pipeline with the run's sampling: conditions in, pixels out."""

    pipeline: Any
    entry: Entry
    sampling: Sampling

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
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pixels in 0..1 (NaN where the model made none): [n, height, width, 3], float32.

        Videos: [n, frames, height, width, 3].
        """
        if self.entry.draws_video:
            frames = self.pipeline.decode_latents(latents, latents.shape[1], decode_chunk_size=8)
            pixels = frames.permute(0, 2, 3, 4, 1)
        else:
            vae = self.pipeline.vae
            latents = _unscaled(latents.to(vae.dtype), vae.config)
            pixels = vae.decode(latents, return_dict=False)[0].permute(0, 2, 3, 1)
        return (pixels.float() / 2 + 0.5).clamp(0, 1).cpu().numpy()


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
