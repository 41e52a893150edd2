"""Runs any text-to-image pipeline of diffusers by its own call, with prompts encoded once each."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch

from tgate_batch.config import Arm, ResolvedSampling, effective_sampling
from tgate_batch.errors import UserError
from tgate_batch.gate.branches import (
    CAPTIONS,
    BranchMap,
    denoisers,
    dropping_guidance,
    read_branches,
)
from tgate_batch.models import engine
from tgate_batch.models.family import SHAPE, Condition
from tgate_batch.models.generic.calls import CallReader, prepare
from tgate_batch.models.generic.encoding import Encodings, PromptMemo, shapes
from tgate_batch.models.pipeline_runner import PipelineRunner, Pixels, pad_batch
from tgate_batch.models.schedulers import build_scheduler, noise_by_row
from tgate_batch.records import Prompt

_DECODERS = ("vae", "movq", "vqgan", "vqvae")


class _Encoded(Exception):
    """Ends a call at its first denoiser, where its prompts are encoded."""


class GenericRunner(PipelineRunner):
    """A loaded pipeline of any class.

    ``denoise`` runs the pipeline's whole call and returns pixels in 0..1; ``decode`` only converts
    them. A condition has the texts of one row and what ``encode_prompt`` made of them.
    """

    def __post_init__(self) -> None:
        prepare(self.pipeline)
        self._call = CallReader.of(self.pipeline)
        self._memo = PromptMemo(self.pipeline)
        self._arm = Arm()
        self._branches: dict[tuple, BranchMap] = {}
        self.device = self.pipeline._execution_device
        self.guided = self._is_guided(self.sampling)
        self._inner_decode_seconds = 0.0

    def batch_settings(self, sampling: ResolvedSampling) -> tuple:
        """Returns the settings that rows must share to be in one batch."""
        size = sampling.height, sampling.width
        has_negative = bool(sampling.negative_prompt)
        return *size, sampling.steps, sampling.guidance_scale, has_negative

    def _is_guided(self, sampling: ResolvedSampling) -> bool:
        return self._call.is_guided(sampling)

    @torch.inference_mode()
    def encode(self, prompts: list[Prompt], arm: Arm | None = None) -> list[Condition]:
        """One condition a prompt: its texts, and their encodings in main memory."""
        samplings = [effective_sampling(self.sampling, arm, each.overrides) for each in prompts]
        return [
            self._condition(prompt.text, sampling.negative_prompt, sampling)
            for prompt, sampling in zip(prompts, samplings, strict=True)
        ]

    def _condition(self, text: str, negative: str, sampling: ResolvedSampling) -> Condition:
        condition: Condition = {"text": text, "negative": negative, "encodings": {}, SHAPE: ()}
        if hasattr(type(self.pipeline), "encode_prompt"):
            with self._text_encoders_here(), self._memo.recording() as used:
                self._until_denoiser(partial(self._render, [condition], [0], sampling))
            condition |= {"encodings": used, SHAPE: shapes(list(used.values()))}
        return condition

    def _until_denoiser(self, call: Callable[[], Any]) -> None:
        def stop(*_: Any) -> None:
            raise _Encoded

        with ExitStack() as stack:
            for module in denoisers(self.pipeline).values():
                stack.callback(module.register_forward_pre_hook(stop).remove)
            with suppress(_Encoded):
                call()

    @contextmanager
    def _text_encoders_here(self) -> Iterator[None]:
        if not self.engine.offload_text_encoder:
            yield
            return
        encoders = [
            part
            for name, part in self.pipeline.components.items()
            if name.startswith("text_encoder") and part is not None
        ]
        for encoder in encoders:
            encoder.to(self.device)
        try:
            yield
        finally:
            for encoder in encoders:
                encoder.to("cpu")
            if self.pipeline._execution_device != self.device:
                raise UserError(
                    f"engine.offload_text_encoder: a {type(self.pipeline).__name__} computes where "
                    "its text encoder is. Fix: leave it out"
                )

    def _is_cut(self, text: str) -> bool:
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        longest = self._call.default("max_sequence_length")
        longest = longest or getattr(tokenizer, "model_max_length", None)
        if (
            tokenizer is None or longest is None or len(text) <= longest // 2
        ):  # a letter is hardly ever two tokens
            return False
        try:
            return len(tokenizer(text, verbose=False)["input_ids"]) > longest
        except (TypeError, ValueError, KeyError):  # a tokenizer that takes more than a text
            return False

    @contextmanager
    def applying(self, arm: Arm, sampling: ResolvedSampling | None = None) -> Iterator[None]:
        """Applies the arm's steps, scheduler and guidance to the batches inside the block."""
        before, scheduler = self.sampling, getattr(self.pipeline, "scheduler", None)
        self.sampling, self._arm = effective_sampling(sampling or before, arm), arm
        if arm.scheduler is not None:
            self.pipeline.scheduler = build_scheduler(arm.scheduler, scheduler)
        try:
            if arm.interval is not None:
                self._read_branches(self.sampling)  # refuses before the first batch
            yield
        finally:
            self.sampling, self._arm = before, Arm()
            if arm.scheduler is not None:
                self.pipeline.scheduler = scheduler

    @torch.inference_mode()
    def is_invariant(self) -> bool:
        """True if equal rows give equal images bit for bit, at every position of a batch."""
        rows = self.sampling.batch_size
        with self.applying(Arm(steps=2)):
            conditions = self.encode([Prompt("probe", "a probe")]) * rows
            images = self.denoise(conditions, [0] * rows)
        return torch.equal(images.nan_to_num(), images[:1].nan_to_num().expand_as(images))

    @torch.inference_mode()
    def denoise(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        """Returns finished pixels in 0..1, one row a condition, decoded inside the call.

        Shape [n, channels, height, width], of videos [n, frames, channels, height, width].
        """
        self._inner_decode_seconds = 0.0
        with engine.attention(self.engine.attention), self._dropping():
            if self._call.facts.alone is None:
                return self._render(conditions, seeds, self.sampling)
            made: dict[tuple, torch.Tensor] = {}
            for condition, seed in zip(conditions, seeds, strict=True):  # padding repeats a row
                key = id(condition), seed
                if key not in made:
                    made[key] = self._render([condition], [seed], self.sampling)
            keys = ((id(each), seed) for each, seed in zip(conditions, seeds, strict=True))
            return torch.cat([made[key] for key in keys])

    def _dropping(self) -> AbstractContextManager[None]:
        """Drops guidance as the arm asks, inside the block."""
        if self._arm.interval is None:
            return nullcontext()
        branches = self._read_branches(self.sampling)
        return dropping_guidance(self.pipeline, branches, self._arm.interval)

    @torch.inference_mode()
    def _read_branches(self, sampling: ResolvedSampling) -> BranchMap:
        """The guidance branches at these settings, read once; raises UserError if none can go."""
        key = (sampling.guidance_scale, sampling.height, sampling.width, sampling.scheduler)
        if key not in self._branches:
            rows = 1 if self._call.facts.alone is not None else 2
            conditions = {
                text: self._condition(text, sampling.negative_prompt, sampling) for text in CAPTIONS
            }

            def render(texts: list[str]) -> Any:
                rows = [conditions[text] for text in texts]
                return self._called(rows, [0] * len(rows), sampling)

            self._branches[key] = read_branches(self.pipeline, render, rows)
        branches = self._branches[key]
        if branches.refusal is not None:
            raise UserError(
                f"guidance of a {type(self.pipeline).__name__} cannot be dropped: "
                f"{branches.refusal}. Fix: leave guidance_from and guidance_until out"
            )
        return branches

    @torch.inference_mode()
    def render_latents(self, conditions: list[Condition], seeds: list[int]) -> None:
        """Runs the loop without decoding, where the pipeline has latents to return."""
        with self._dropping():
            self._called(conditions, seeds, self.sampling, output_type="latent")

    def _render(
        self, conditions: list[Condition], seeds: list[int], sampling: ResolvedSampling
    ) -> torch.Tensor:
        return self._sized(_pixels(self._called(conditions, seeds, sampling)), sampling)

    def _called(
        self,
        conditions: list[Condition],
        seeds: list[int],
        sampling: ResolvedSampling,
        **changes: Any,
    ) -> Any:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments = self._call.arguments(
            [each["text"] for each in conditions],
            [each["negative"] for each in conditions],
            sampling,
        )
        arguments |= {name: value for name, value in changes.items() if name in arguments}
        known: Encodings = {}
        for condition in conditions:
            known |= condition["encodings"]
        one = self._call.facts.alone is not None
        with ExitStack() as stack:
            if known:
                stack.enter_context(self._memo.reading(known))
            for name, part in self.pipeline.components.items():
                if "scheduler" in name and hasattr(part, "step"):
                    stack.enter_context(noise_by_row(part, generators))
            for name in _DECODERS:
                if hasattr(getattr(self.pipeline, name, None), "decode"):
                    stack.enter_context(self._decoding(getattr(self.pipeline, name)))
            return self.pipeline(**arguments, generator=generators[0] if one else generators)

    def _sized(self, pixels: torch.Tensor, sampling: ResolvedSampling) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        if (height, width) != (sampling.height, sampling.width):
            raise UserError(
                f"a {type(self.pipeline).__name__} renders {width} x {height} pixels where "
                f"{sampling.width} x {sampling.height} are asked. Fix: set height and width to "
                "multiples of 32, or to that size"
            )
        return pixels

    @contextmanager
    def _decoding(self, decoder: Any) -> Iterator[None]:
        """Within the block the decoder runs on ``decode_batch_size`` rows at once, and is timed."""
        own, before = decoder.decode, vars(decoder).get("decode")
        asked = self.engine.decode_batch_size

        def decode(*args: Any, **kwargs: Any) -> Any:
            self._synchronize()
            start = time.perf_counter()
            try:
                return in_parts(own, asked, *args, **kwargs)
            finally:
                self._synchronize()
                self._inner_decode_seconds += time.perf_counter() - start

        vars(decode)["__signature__"] = signature(own)  # pipelines read it
        decoder.decode = decode
        try:
            yield
        finally:
            del decoder.decode
            if before is not None:
                decoder.decode = before

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> Pixels:
        """Converts pixels in 0..1 to uint8, as diffusers does."""
        finite = latents.isfinite().flatten(1).all(dim=1)
        levels = latents.nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
        values = levels.movedim(-3, -1).cpu().numpy()
        rate = self._call.facts.frames_per_second
        return Pixels(values, finite.cpu().numpy(), rate, self._inner_decode_seconds)


def in_parts(own: Callable[..., Any], size: int | None, *args: Any, **kwargs: Any) -> Any:
    """Calls ``own`` on ``size`` rows of its tensors at a time, and joins what it returns.

    All parts are of one size: the last row fills up. ``size`` None: one call of all rows.
    """
    first = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
    count = 0 if first is None else len(first)
    if size is None or size >= count:
        return own(*args, **kwargs)
    rows = pad_batch(list(range(count)), -(-count // size) * size)
    outputs = []
    for start in range(0, len(rows), size):
        cut = partial(_rows, count=count, rows=rows[start : start + size])
        outputs.append(own(*map(cut, args), **{key: cut(value) for key, value in kwargs.items()}))
    return _joined(outputs, count)


def _rows(value: Any, count: int, rows: list[int]) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count:
        return value[rows]
    if isinstance(value, list) and len(value) == count:
        return [value[row] for row in rows]
    return value


def _joined(outputs: list[Any], count: int) -> Any:
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(outputs)[:count]
    if isinstance(first, dict):
        return type(first)(**{k: _joined([each[k] for each in outputs], count) for k in first})
    if isinstance(first, tuple):
        return tuple(_joined(list(each), count) for each in zip(*outputs, strict=True))
    for name, value in vars(first).items():
        if isinstance(value, torch.Tensor):
            setattr(first, name, _joined([getattr(each, name) for each in outputs], count))
    return first


def _pixels(output: Any) -> torch.Tensor:
    """Pixels in 0..1, channels before height and width, of whatever a call returns first."""
    images = output[0] if isinstance(output, tuple | list) else next(iter(output.values()))
    if isinstance(images, torch.Tensor):
        return images.float()
    if isinstance(images, np.ndarray):  # channels last
        return torch.from_numpy(images).movedim(-1, -3).float()
    if isinstance(images[0], torch.Tensor):
        return torch.stack(list(images)).float()
    if isinstance(images[0], np.ndarray):
        return torch.from_numpy(np.stack(images)).movedim(-1, -3).float()
    stacked = np.stack([np.stack([np.asarray(frame) for frame in _listed(one)]) for one in images])
    pixels = torch.from_numpy(stacked).movedim(-1, -3).float() / 255
    return pixels if isinstance(images[0], list) else pixels[:, 0]


def _listed(frames: Any) -> list[Any]:
    return frames if isinstance(frames, list) else [frames]
