"""One shard, one arm, one pipeline -> records. No Ray.

Every prompt ends as exactly one row per picture, ``status`` ok or error: a batch that fails is
tried again row by row, a batch that does not fit in memory is halved.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from tgate_batch.config import Arm, Images
from tgate_batch.errors import DeviceLost
from tgate_batch.gate import gated
from tgate_batch.models.family import Condition
from tgate_batch.models.runner import PipelineRunner
from tgate_batch.records import ImageRecord, Prompt, Shard, image_seed
from tgate_batch.render import codec
from tgate_batch.render.time_sheet import TimeSheet


@dataclass(frozen=True)
class _Picture:
    """One picture to make: a row before it is a row."""

    prompt: Prompt
    number: int
    seed: int
    condition: Condition | None
    error: str | None = None

    def failed(self, error: str) -> ImageRecord:
        return ImageRecord(
            self.prompt.id, self.number, self.prompt.text, self.seed, "error", error=error
        )


class Renderer:
    """Renders shards with one loaded pipeline; keeps what the arms of a shard share."""

    def __init__(
        self,
        runner: PipelineRunner,
        images: Images,
        worker: str,
        times: TimeSheet | None = None,
        encoders: int = 2,
    ):
        self._runner = runner
        self._images = images
        self._worker = worker
        self._times = times or TimeSheet()
        self._threads = ThreadPoolExecutor(encoders, thread_name_prefix="encode")
        self._batch_size = runner.sampling.batch_size
        self._encoded: dict[str, list[_Picture]] = {}  # shard digest -> its pictures
        self._warm: set[str] = set()

    def render(
        self, shard: Shard, name: str, arm: Arm, quarantined: Mapping[str, str] | None = None
    ) -> Iterator[Callable[[], ImageRecord]]:
        """Yields, in the shard's order, calls that return finished rows.

        The pictures of a batch are compressed on threads while the next batch denoises, so call
        them when all have been yielded. Prompts in ``quarantined`` (id -> reason) become error
        rows unseen by the device. Raises DeviceLost.
        """
        pictures = self._pictures(shard, quarantined or {})
        ready = [picture for picture in pictures if picture.error is None]
        with self._gated(arm):
            rows = iter(self._settle(ready, name, shard, largest=self._batch_size))
        for picture in pictures:
            yield next(rows) if picture.error is None else _given(picture.failed(picture.error))

    def draw(
        self, shard: Shard, keys: Sequence[tuple[str, int]], arm: Arm
    ) -> dict[tuple[str, int], ImageRecord]:
        """Draws some pictures of a shard, (prompt id, image number), as one batch.

        They get the rows that ``render`` gave them where it batched them so. Raises DeviceLost.
        """
        known = {
            (picture.prompt.id, picture.number): picture for picture in self._pictures(shard, {})
        }
        batch = [known[key] for key in keys]
        failed = [picture.failed(picture.error) for picture in batch if picture.error is not None]
        ready = [picture for picture in batch if picture.error is None]
        with self._gated(arm):
            rows = [row() for row in self._settle(ready, "again", shard, largest=len(batch))]
        return {(row.prompt_id, row.image_number): row for row in [*failed, *rows]}

    def _gated(self, arm: Arm) -> AbstractContextManager:
        """The pipeline under the arm's plan, for the length of a block."""
        guided = self._runner.guided
        return gated(self._runner.pipeline, arm.plan, guided=guided, deepcache=arm.cache)

    def _pictures(self, shard: Shard, quarantined: Mapping[str, str]) -> list[_Picture]:
        """The shard's pictures with their encoded prompts: encoded once, shared by its arms."""
        key = f"{shard.digest}{sorted(quarantined)}"
        if key not in self._encoded:
            while len(self._encoded) > 1:  # two shards may be in flight
                self._encoded.pop(next(iter(self._encoded)))
            with self._times.timed("text"):
                self._encoded[key] = list(self._encode(shard, quarantined))
        return self._encoded[key]

    def _encode(self, shard: Shard, quarantined: Mapping[str, str]) -> Iterator[_Picture]:
        sampling = self._runner.sampling
        for start in range(0, len(shard.prompts), sampling.batch_size):
            prompts = list(shard.prompts[start : start + sampling.batch_size])
            conditions = self._conditions(prompts, quarantined)
            for prompt, found in zip(prompts, conditions, strict=True):
                for number in range(sampling.images_per_prompt):
                    seed = image_seed(sampling.seed, prompt.id, number)
                    if isinstance(found, str):
                        yield _Picture(prompt, number, seed, None, error=found)
                    else:
                        yield _Picture(prompt, number, seed, found)

    def _conditions(
        self, prompts: list[Prompt], quarantined: Mapping[str, str]
    ) -> list[Condition | str]:
        """Encoded prompts, or the reason why one has none."""
        wanted = [prompt for prompt in prompts if prompt.id not in quarantined]
        try:
            encoded = iter(self._runner.encode(wanted) if wanted else [])
            return [quarantined.get(prompt.id) or next(encoded) for prompt in prompts]
        except Exception as error:
            _raise_if_lost(error)
            if len(prompts) == 1:
                return [_reason(error)]
            return [self._conditions([prompt], quarantined)[0] for prompt in prompts]

    def _settle(
        self, pictures: list[_Picture], arm: str, shard: Shard, largest: int
    ) -> list[Callable[[], ImageRecord]]:
        """A row a picture, in batches of at most ``largest``, smaller where memory asks for it."""
        settled: list[Callable[[], ImageRecord]] = []
        while len(settled) < len(pictures):
            size = min(largest, self._batch_size)
            settled += self._attempt(pictures[len(settled) :][:size], arm, shard)
        return settled

    def _attempt(
        self, batch: list[_Picture], arm: str, shard: Shard
    ) -> list[Callable[[], ImageRecord]]:
        """A row a picture; or none where the batch did not fit and a smaller one is to be tried."""
        try:
            return self._batch(batch, arm, shard)
        except Exception as error:
            _raise_if_lost(error)
            full, reason = _out_of_memory(error), _reason(error)
        # Out of the handler: the traceback no longer holds the failed batch's tensors.
        if full and self._asks_for_less(len(batch)):
            return []
        if len(batch) > 1:
            return self._settle(batch, arm, shard, largest=1)
        return [_given(batch[0].failed(reason))]

    def _asks_for_less(self, size: int) -> bool:
        """Halves the batch, then slices the VAE; False where nothing is left to give up."""
        gc.collect()
        torch.cuda.empty_cache()
        vae = self._runner.pipeline.vae
        if size > 1:
            self._batch_size = size // 2
        elif not getattr(vae, "use_slicing", True):
            vae.enable_slicing()
        else:
            return False
        return True

    def _batch(
        self, batch: list[_Picture], arm: str, shard: Shard
    ) -> list[Callable[[], ImageRecord]]:
        start = time.perf_counter()
        latents = self._runner.denoise(
            [picture.condition or {} for picture in batch], [picture.seed for picture in batch]
        )
        if latents.is_cuda:
            torch.cuda.synchronize()
        denoised = time.perf_counter()
        pixels = self._runner.decode(latents)
        end = time.perf_counter()
        measured = {
            "batch": f"{shard.name}-{batch[0].prompt.id}-{batch[0].number}",
            "batch_size": len(batch),
            "batch_seconds": end - start,
            "denoise_seconds": denoised - start,
            "decode_seconds": end - denoised,
            "warm_up": arm not in self._warm,
            "worker": self._worker,
        }
        self._warm.add(arm)
        self._times.add("denoise", denoised - start)
        self._times.add("decode", end - denoised)
        return [
            self._threads.submit(self._record, picture, values, finite, measured).result
            for picture, values, finite in zip(batch, pixels.values, pixels.finite, strict=True)
        ]

    def _record(
        self, picture: _Picture, frames: np.ndarray, finite: bool, measured: dict
    ) -> ImageRecord:
        if not finite:
            return picture.failed("the picture has pixels that are not numbers (NaN or infinite)")
        start = time.perf_counter()
        film = codec.video(frames) if frames.ndim == 4 else None
        first = frames[0] if frames.ndim == 4 else frames
        content = codec.picture(first, self._images)
        seconds = time.perf_counter() - start
        self._times.add("encode", seconds)
        return ImageRecord(
            picture.prompt.id,
            picture.number,
            picture.prompt.text,
            picture.seed,
            "ok",
            image=content,
            video=film,
            width=first.shape[1],
            height=first.shape[0],
            encode_seconds=seconds,
            **measured,
        )


def _given(record: ImageRecord) -> Callable[[], ImageRecord]:
    future: Future[ImageRecord] = Future()
    future.set_result(record)
    return future.result


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate" in str(error)


def _raise_if_lost(error: Exception) -> None:
    """A CUDA error other than memory stays with the process: no later batch could succeed."""
    lost = isinstance(error, DeviceLost) or (
        isinstance(error, RuntimeError)
        and not _out_of_memory(error)
        and ("CUDA error" in str(error) or "cuBLAS" in str(error) or "CUDNN_STATUS" in str(error))
    )
    if lost:
        raise DeviceLost(_reason(error)) from error
