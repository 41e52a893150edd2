"""Running a loaded pipeline in three parts: encode once, denoise, decode.

Separate parts let arms share the encoded prompts; denoising and decoding are timed and
batched separately. No pipeline code is copied: each part calls the pipeline's own code as its
family describes.
"""

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image
from diffusers.utils import logging
from PIL import Image

from tgate_batch.config import Arm, Config, Engine, Model, ResolvedSampling, effective_sampling
from tgate_batch.gate import GateNotReached, denoiser_of, gated, is_guided
from tgate_batch.gate.supported_denoisers import find_denoiser
from tgate_batch.models import engine
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.family import Condition, Family, first_image
from tgate_batch.models.guidance import scale_of
from tgate_batch.models.resolve import resolve_model, resolve_sampling
from tgate_batch.models.schedulers import build_scheduler, noise_by_row
from tgate_batch.records import Prompt

_PLAIN = Arm()
_NOT_ENCODED = {"steps", "scheduler", "scheduler_arguments", "batch_size", "padding", "seed"}
_NEGATIVES = 64  # negative prompts that are kept encoded


@dataclass(frozen=True)
class Pixels:
    """A batch of finished images, on the CPU."""

    values: np.ndarray  # uint8 [n, height, width, 3]; videos [n, frames, height, width, 3]
    finite: np.ndarray  # bool [n]: whether the model made numbers everywhere
    frames_per_second: int = 7  # of videos
    inner_decode_seconds: float = 0.0  # of decoding that `denoise` did


@dataclass
class PipelineRunner:
    """A loaded pipeline with the run's sampling: prompts in, pixels out."""

    pipeline: Any
    family: Family
    sampling: ResolvedSampling
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        self.guided = self._is_guided(self.sampling)
        self.device = self.pipeline._execution_device
        self._vae_dtype = self.pipeline.vae.dtype
        self._ready_to_decode()
        self._negatives: dict[str, Condition] = {}  # by their text

    def batch_settings(self, sampling: ResolvedSampling) -> tuple:
        """Returns the settings that rows must share to be in one batch."""
        config = denoiser_of(self.pipeline).config
        embeds = getattr(config, "time_cond_proj_dim", None) is not None
        mixes = self.family.mixes_guidance and not embeds
        scale = None if mixes else sampling.guidance_scale
        guided = self._is_guided(sampling)
        size = sampling.height, sampling.width
        return *size, sampling.steps, sampling.strength, guided, scale

    def _is_guided(self, sampling: ResolvedSampling) -> bool:
        return is_guided(self.pipeline, sampling.guidance_scale)

    @torch.inference_mode()
    def encode(self, prompts: list[Prompt], arm: Arm = _PLAIN) -> list[Condition]:
        """One condition a prompt, its guidance scale in it; kept in main memory until its batch.

        ``arm``: the one whose images they are for; arms with the same ``encoding_key`` have equal
        conditions.
        """
        scale = self.family.guidance
        samplings = [effective_sampling(self.sampling, arm, prompt.overrides) for prompt in prompts]
        return [
            {**condition, scale: sampling.guidance_scale, **_beginning(prompt, sampling)}
            for condition, prompt, sampling in zip(
                self._conditions(prompts, samplings), prompts, samplings, strict=True
            )
        ]

    def encoding_key(self, arm: Arm) -> str:
        """Returns the sampling settings of an arm that a condition depends on, as JSON."""
        return effective_sampling(self.sampling, arm).model_dump_json(exclude=_NOT_ENCODED)

    def _conditions(
        self, prompts: list[Prompt], samplings: list[ResolvedSampling]
    ) -> list[Condition]:
        if (made := self.family.condition) is not None:
            return [made(*pair) for pair in zip(prompts, samplings, strict=True)]
        if not self.engine.offload_text_encoder:
            return self._encoded(prompts, samplings)
        encoders = [
            module
            for name, module in self.pipeline.components.items()
            if name.startswith("text_encoder") and module is not None
        ]
        for module in encoders:
            module.to(self.device)
        try:
            return self._encoded(prompts, samplings)
        finally:
            for module in encoders:
                module.to("cpu")

    def _encoded(self, prompts: list[Prompt], samplings: list[ResolvedSampling]) -> list[Condition]:
        negatives = [
            self._negative(sampling.negative_prompt) if self._is_guided(sampling) else {}
            for sampling in samplings
        ]
        positive = self._encode([prompt.text for prompt in prompts], guided=False)
        return [
            {name: value[i : i + 1].cpu() for name, value in positive.items()} | negative
            for i, negative in enumerate(negatives)
        ]

    def _negative(self, text: str) -> Condition:
        """Encodes a negative prompt once and caches it; an empty one is the pipeline's default."""
        if text not in self._negatives:
            while len(self._negatives) >= _NEGATIVES:
                self._negatives.pop(next(iter(self._negatives)))
            given = {"negative_prompt": [text]} if text else {}
            encoded = self._encode([""], guided=True, **given)
            self._negatives[text] = {
                name: value.cpu() for name, value in encoded.items() if name.startswith("negative_")
            }
        return self._negatives[text]

    def _encode(self, texts: list[str], guided: bool, **options: Any) -> dict[str, torch.Tensor]:
        outputs = self.pipeline.encode_prompt(
            prompt=texts,
            device=self.device,
            do_classifier_free_guidance=guided,
            **self._as_called,
            **options,
        )
        named = zip(self.family.encoded, outputs, strict=True)
        return {name: value for name, value in named if value is not None}

    def cut(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts that the text encoder truncates."""
        return [prompt for prompt in prompts if self._is_cut(prompt.text)]

    def truncated_negatives(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts whose negative prompt the text encoder truncates, where guidance reads it."""
        samplings = (
            (prompt, effective_sampling(self.sampling, row=prompt.overrides)) for prompt in prompts
        )
        return [
            prompt
            for prompt, sampling in samplings
            if self._is_guided(sampling) and self._is_cut(sampling.negative_prompt)
        ]

    def _is_cut(self, text: str) -> bool:
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        if tokenizer is None:
            return False
        longest = self._as_called.get("max_sequence_length") or tokenizer.model_max_length
        if len(text) <= longest // 2:  # a letter is hardly ever two tokens
            return False
        return len(tokenizer(text, verbose=False).input_ids) > longest

    @cached_property
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
    def applying(self, arm: Arm, sampling: ResolvedSampling | None = None) -> Iterator[None]:
        """Applies the arm's steps, scheduler and plan to the batches inside the block.

        ``sampling``: the sampling of the rows, if it differs from the run's.
        """
        before = self.sampling
        self.sampling = effective_sampling(sampling or before, arm)
        drawing = self._drawing
        scheduler = drawing.scheduler
        if arm.scheduler is not None:
            drawing.scheduler = build_scheduler(arm.scheduler, scheduler)
        try:
            with (
                # A plan that is never reached is said once, before anything is drawn.
                warnings.catch_warnings(action="ignore", category=GateNotReached),
                gated(
                    drawing,
                    arm.combined_plan,
                    guided=self._is_guided(self.sampling),
                    deepcache=arm.cache,
                ),
            ):
                yield
        finally:
            self.sampling, drawing.scheduler = before, scheduler

    @property
    def _drawing(self) -> Any:
        """The pipeline that renders: the loaded one, or its image-to-image pipeline."""
        return self.pipeline if self.sampling.strength is None else self._from_pictures

    @cached_property
    def _from_pictures(self) -> Any:
        pipeline = AutoPipelineForImage2Image.from_pipe(self.pipeline)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.inference_mode()
    def is_invariant(self) -> bool:
        """True if equal rows give equal results bit for bit, at every position of a batch.

        Renders one prompt as a whole batch in two steps, one of them of both branches and one after
        a gate: the two numbers of rows that batches run on. With several threads a CPU computes
        some rows otherwise than others at some numbers of rows.
        """
        rows = self.sampling.batch_size
        halves = self.guided and find_denoiser(denoiser_of(self.pipeline)) is not None
        arm = Arm(steps=2, guidance_until=1 if halves else None)
        conditions = self.encode([Prompt("probe", "a probe", _ramp())] * rows)
        with self.applying(arm):
            latents = self.denoise(conditions, [0] * rows)
        pixels = self.family.decode(self.pipeline, latents[: self.engine.decode_batch_size or rows])
        encoded = (
            torch.cat(values)
            for values in zip(*(each.values() for each in conditions), strict=True)
            if isinstance(values[0], torch.Tensor)
        )
        return all(map(_are_equal, (*encoded, latents, pixels)))

    @torch.inference_mode()
    def denoise(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        """Returns final latents, one row per condition; a row's noise depends only on its seed."""
        silence = nullcontext() if self.sampling.strength is None else _without_warnings()
        with engine.attention(self.engine.attention), silence:
            return self._denoised(conditions, seeds)

    def _denoised(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments = {
            name: _batch([condition[name] for condition in conditions], self.device)
            for name in conditions[0]
        }
        guidance = self.family.guidance
        arguments[guidance] = scale_of(arguments[guidance])
        arguments |= {"height": self.sampling.height, "width": self.sampling.width}
        if self.sampling.strength is not None:
            self._vae_in(self._vae_dtype)  # it encodes as the pipeline means it to
            taken = signature(type(self._drawing).__call__).parameters
            arguments = {name: value for name, value in arguments.items() if name in taken}
            arguments["strength"] = self.sampling.strength
        with noise_by_row(self._drawing.scheduler, generators):
            return self._drawing(
                **arguments,
                **self.family.call,
                num_inference_steps=self.sampling.steps,
                generator=generators,
                output_type="latent",
            )[0]

    def _ready_to_decode(self) -> None:
        vae = self.pipeline.vae
        if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
            self._vae_in(torch.float32)  # this VAE overflows in half precision

    def _vae_in(self, dtype: torch.dtype) -> None:
        torch.nn.Module.to(self.pipeline.vae, dtype)  # diffusers' own warns of every dtype

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Pixels:
        """Decodes final latents to pixels, ``engine.decode_batch_size`` at a time."""
        self._ready_to_decode()
        count = len(latents)
        size = min(self.engine.decode_batch_size or count, count)
        rows = pad_batch(list(range(count)), -(-count // size) * size)  # parts are of one size
        parts = latents[rows].split(size)
        pixels = torch.cat([self.family.decode(self.pipeline, part) for part in parts])[:count]
        finite = pixels.isfinite().flatten(1).all(dim=1)
        # Rounded as diffusers' image processor does, but before the copy off the device.
        values = (pixels.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        rate = self.family.frames_per_second
        return Pixels(values.cpu().numpy(), finite.cpu().numpy(), rate)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """diffusers' own: its image-to-image warns, batch after batch, of the VAE's dtype."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _beginning(prompt: Prompt, sampling: ResolvedSampling) -> Condition:
    return {} if sampling.strength is None else {"image": first_image(prompt, sampling)}


def _are_equal(rows: torch.Tensor) -> bool:
    return torch.equal(rows.nan_to_num(), rows[:1].nan_to_num().expand_as(rows))


def _ramp() -> bytes:
    """A picture, for models that begin with one."""
    content = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(content, "PNG")
    return content.getvalue()


def pad_batch(values: list[Any], size: int) -> list[Any]:
    """At least ``size`` values: the last one fills up."""
    return values + values[-1:] * (size - len(values))


def open_runner(model: Model, config: Config) -> PipelineRunner:
    """Loads the model and prepares it for the run; raises UserError if it cannot be loaded."""
    device = "cuda" if config.workers.gpus_each > 0 else "cpu"
    resolved = resolve_model(model)
    sampling = resolve_sampling(model, config.sampling, resolved)
    pipeline = load_pipeline(model, sampling, device)
    engine.prepare(pipeline, config.engine)
    return runner_class(resolved.family)(pipeline, resolved.family, sampling, config.engine)


def runner_class(family: Family) -> type[PipelineRunner]:
    """Returns the class that runs pipelines of a family."""
    if family.runner is None:
        return PipelineRunner
    module, _, name = family.runner.partition(":")
    return getattr(import_module(module), name)


def _batch(values: list[Any], device: torch.device) -> Any:
    """One argument of a batch: tensors become one on the device, anything else stays a list."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values).to(device)
    return values
