"""Running a loaded pipeline in three parts: encode once, denoise, decode.

The parts are apart so that arms share the encoded prompts and denoising and decoding are timed
and batched on their own. No pipeline code is repeated here: each part is the pipeline's own, called
as its family says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch

from tgate_batch.config import Arm, Config, Engine, Model, ResolvedSampling
from tgate_batch.gate import gated, is_guided
from tgate_batch.models import engine
from tgate_batch.models.checkpoint import load
from tgate_batch.models.family import Condition, Family
from tgate_batch.models.opened import opened, resolve
from tgate_batch.models.scheduling import another_scheduler
from tgate_batch.records import Prompt


@dataclass(frozen=True)
class Pixels:
    """A batch of finished pictures, on the CPU."""

    values: np.ndarray  # uint8 [n, height, width, 3]; videos [n, frames, height, width, 3]
    finite: np.ndarray  # bool [n]: whether the model made numbers everywhere
    frames_per_second: int = 7  # of videos


@dataclass
class PipelineRunner:
    """A loaded pipeline with the run's sampling: prompts in, pixels out."""

    pipeline: Any
    family: Family
    sampling: ResolvedSampling
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
        if self.family.condition is not None:
            return [self.family.condition(prompt, self.sampling) for prompt in prompts]
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
            do_classifier_free_guidance=guided,
            **self._as_called(),
            **options,
        )
        named = zip(self.family.encoded, outputs, strict=True)
        return {name: value for name, value in named if value is not None}

    def _as_called(self) -> dict[str, Any]:
        """What a whole call would pass on to ``encode_prompt``: the call's own defaults.

        The two functions' defaults differ: Wan's call reads 512 tokens, and Sana's puts an
        instruction before the prompt.
        """
        kind = type(self.pipeline)
        call = signature(kind.__call__).parameters.values()
        defaults = {each.name: each.default for each in call if each.default is not each.empty}
        taken = signature(kind.encode_prompt).parameters.keys()
        return {
            name: value
            for name, value in {**defaults, **self.family.call}.items()
            if name in taken and name not in ("prompt", "negative_prompt")
        }

    @contextmanager
    def under(self, arm: Arm) -> Iterator[None]:
        """Within the block, batches are drawn as the arm says: its steps, scheduler and plan."""
        sampling, scheduler = self.sampling, self.pipeline.scheduler
        self.sampling = sampling.under(arm)
        if arm.scheduler is not None:
            self.pipeline.scheduler = another_scheduler(arm.scheduler, scheduler)
        try:
            with gated(
                self.pipeline,
                arm.plan or arm.guidance,
                guided=self.guided,
                deepcache=arm.cache,
            ):
                yield
        finally:
            self.sampling, self.pipeline.scheduler = sampling, scheduler

    @torch.inference_mode()
    def denoise(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        """Final latents, one row a condition; the noise of a row is its seed's alone."""
        with engine.attention(self.engine.attention):
            return self._denoised(conditions, seeds)

    def _denoised(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments = {
            name: _batch([condition[name] for condition in conditions], self.device)
            for name in conditions[0]
        }
        for name, value in (self._negative or {}).items():
            arguments[name] = value.expand(len(conditions), *value.shape[1:])
        return self.pipeline(
            **arguments,
            **self.family.call,
            **{self.family.guidance: self.sampling.guidance_scale},
            num_inference_steps=self.sampling.steps,
            height=self.sampling.height,
            width=self.sampling.width,
            generator=generators,
            output_type="latent",
        )[0]

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Pixels:
        """Final latents to pictures, a few at a time where the engine says so."""
        parts = latents.split(self.engine.decode_batch_size or len(latents))
        pixels = torch.cat([self.family.decode(self.pipeline, part) for part in parts])
        finite = pixels.isfinite().flatten(1).all(dim=1)
        # Rounded as diffusers' image processor does, but before the copy off the device.
        values = (pixels.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        rate = self.family.frames_per_second
        return Pixels(values.cpu().numpy(), finite.cpu().numpy(), rate)


def open_runner(model: Model, config: Config) -> PipelineRunner:
    """Loads the model and makes it ready for the run; raises UserError where it cannot be had."""
    device = "cuda" if config.workers.gpus_each > 0 else "cpu"
    found = opened(model)
    sampling = resolve(model, config.sampling, found)
    pipeline = load(model, sampling, device)
    engine.prepare(pipeline, config.engine)
    return PipelineRunner(pipeline, found.family, sampling, config.engine)


def _batch(values: list[Any], device: torch.device) -> Any:
    """One argument of a batch: tensors become one on the device, anything else stays a list."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values).to(device)
    return values
