"""One shard, one arm, one pipeline -> records. No Ray.

Every prompt ends as exactly one row per picture, ``status`` ok or error: a batch that fails is
tried again row by row, a batch that does not fit in memory is halved, and grows back in time. Where
the run pads, each batch is computed with its full number of rows: bits depend on that number.
"""

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tgate_batch.config import Arm, Images, ResolvedSampling, effective_sampling
from tgate_batch.errors import DeviceLost
from tgate_batch.models.family import SHAPE, Condition
from tgate_batch.models.pipeline_runner import PipelineRunner, pad_batch
from tgate_batch.records import Cut, Failure, ImageRecord, Prompt, Shard, image_seed
from tgate_batch.render import codec
from tgate_batch.render.batch_size import BatchSizeController
from tgate_batch.render.timing import StageTimer

_TEXT = "text in a "
_NOT_FINITE = Failure("NotFinite", "the picture has pixels that are not numbers (NaN or infinite)")


@dataclass(frozen=True)
class _Image:
    """One picture to make: a row before it is a row."""

    prompt: Prompt
    number: int
    seed: int
    sampling: ResolvedSampling
    condition: Condition | None
    text: str | None = None  # how memory cut the batch in which its prompt was encoded
    failure: Failure | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt.id, self.number

    @property
    def row_columns(self) -> dict[str, Any]:
        """What its row says of it, drawn or not, beside what every row has to."""
        return {
            "negative_prompt": self.sampling.negative_prompt or None,
            "guidance_scale": self.sampling.guidance_scale,
            "strength": self.sampling.strength,
            "place": self.prompt.source_row,
            "kept": self.prompt.extra_columns,
        }

    def failed(self, failure: Failure) -> ImageRecord:
        return ImageRecord(
            self.prompt.id,
            self.number,
            self.prompt.text,
            self.seed,
            "error",
            error=failure.reason,
            error_kind=failure.kind,
            error_traceback=failure.traceback,
            **self.row_columns,
        )


class Renderer:
    """Renders shards with one loaded pipeline; keeps what the arms of a shard share."""

    def __init__(
        self,
        runner: PipelineRunner,
        images: Images,
        worker: str,
        times: StageTimer | None = None,
        encoders: int = 2,
    ):
        self.runner = runner
        self._images = images
        self._worker = worker
        self._times = times or StageTimer()
        self._threads = ThreadPoolExecutor(encoders, thread_name_prefix="encode")
        self._ladder = BatchSizeController(
            runner.sampling.batch_size, getattr(runner.pipeline, "vae", None)
        )
        self._text = BatchSizeController(runner.sampling.batch_size, None)  # of text encoders
        self._encoded: dict[str, list[_Image]] = {}  # shard digest -> its pictures
        self._cut: tuple[str, Cut] = ("", Cut())  # of the last shard, by its digest
        self._warm: set[tuple] = set()

    def render(
        self,
        shard: Shard,
        name: str,
        arm: Arm,
        quarantined: Mapping[str, Failure] | None = None,
        only: Collection[tuple[str, int]] | None = None,
    ) -> Iterator[Callable[[], ImageRecord]]:
        """Yields, as batches are drawn, calls that return finished rows.

        They are in the shard's order, but that rows which cannot share a batch come kind after
        kind. The pictures of a batch are compressed on threads while the next batch denoises, so
        call them when all have been yielded. Prompts in ``quarantined``, by id, become error rows
        unseen by the device. ``only``: these pictures alone, (prompt id, image number). Raises
        DeviceLost.
        """
        pictures = [
            picture
            for picture in self._pictures(shard, arm, quarantined or {})
            if only is None or picture.key in only
        ]
        for alike in self._alike(pictures):
            ready = [picture for picture in alike if picture.failure is None]
            with self.runner.applying(arm, alike[0].sampling):
                rows = self._settle(ready, name, shard, largest=len(ready))
                for picture in alike:
                    if picture.failure is None:
                        yield next(rows)
                    else:
                        yield _given(picture.failed(picture.failure))

    def _alike(self, pictures: list[_Image]) -> list[list[_Image]]:
        """Those that may share batches together; a shard's usually all may."""
        groups: dict[tuple, list[_Image]] = {}
        for picture in pictures:
            shape = (picture.condition or {}).get(SHAPE)
            settings = self.runner.batch_settings(picture.sampling), shape
            groups.setdefault(settings, []).append(picture)
        return list(groups.values())

    def render_rows(
        self,
        shard: Shard,
        keys: Sequence[tuple[str, int]],
        arm: Arm,
        memory: str | None = None,
    ) -> dict[tuple[str, int], ImageRecord]:
        """Draws some pictures of a shard, (prompt id, image number), as one batch.

        They get the rows that ``render`` gave them where it batched them so. ``memory`` is what
        those say of it. Raises DeviceLost.
        """
        self._ladder.restore(memory)
        self._text.restore(memory and memory.partition(_TEXT)[2])
        known = {picture.key: picture for picture in self._pictures(shard, arm, {})}
        batch = [known[key] for key in keys]
        failed = [p.failed(p.failure) for p in batch if p.failure is not None]
        ready = [picture for picture in batch if picture.failure is None]
        with self.runner.applying(arm, batch[0].sampling):
            rows = [row() for row in list(self._settle(ready, "again", shard, len(batch)))]
        return {(row.prompt_id, row.image_number): row for row in [*failed, *rows]}

    def cut(self, shard: Shard) -> Cut:
        """Ids of the shard's prompts of which the model does not read the whole text."""
        if self._cut[0] != shard.digest:  # the arms of a shard come one after the other
            truncated = (
                self.runner.cut(shard.prompts),
                self.runner.truncated_negatives(shard.prompts),
            )
            self._cut = (
                shard.digest,
                Cut(*(tuple(prompt.id for prompt in one) for one in truncated)),
            )
        return self._cut[1]

    def _pictures(self, shard: Shard, arm: Arm, quarantined: Mapping[str, Failure]) -> list[_Image]:
        """The shard's pictures with their encoded prompts, which arms share that encode alike."""
        key = f"{shard.digest}{sorted(quarantined)}{self.runner.encoding_key(arm)}"
        if key not in self._encoded:
            while len(self._encoded) > 1:  # two shards may be in flight
                self._encoded.pop(next(iter(self._encoded)))
            with self._times.timed("text"):
                self._encoded[key] = list(self._encode(shard, arm, quarantined))
        return self._encoded[key]

    def _encode(
        self, shard: Shard, arm: Arm, quarantined: Mapping[str, Failure]
    ) -> Iterator[_Image]:
        sampling = self.runner.sampling
        for start in range(0, len(shard.prompts), sampling.batch_size):
            prompts = list(shard.prompts[start : start + sampling.batch_size])
            conditions = self._conditions(prompts, arm, quarantined)
            for prompt, condition in zip(prompts, conditions, strict=True):
                own = effective_sampling(sampling, arm, prompt.overrides)
                for number in range(sampling.images_per_prompt):
                    seed = image_seed(sampling.seed, prompt.id, number, prompt.overrides.seed)
                    if isinstance(condition, Failure):
                        yield _Image(prompt, number, seed, own, None, failure=condition)
                    else:
                        yield _Image(prompt, number, seed, own, condition, self._text.state)

    def _conditions(
        self, prompts: list[Prompt], arm: Arm, quarantined: Mapping[str, Failure]
    ) -> list[Condition | Failure]:
        """Encoded prompts, or the reason why one has none."""
        wanted = [prompt for prompt in prompts if prompt.id not in quarantined]
        size = self._rows(wanted, self._text)
        try:
            encoded = [
                condition
                for start in range(0, len(wanted), size)
                for condition in self._encoded_together(wanted[start : start + size], arm)
            ]
        except Exception as error:
            _raise_if_lost(error)
            full, failure = _out_of_memory(error), Failure.of(error)
        else:
            conditions = iter(encoded)
            return [quarantined.get(prompt.id) or next(conditions) for prompt in prompts]
        if full and _asks_for_less(self._text, size):
            return self._conditions(prompts, arm, quarantined)
        if len(prompts) == 1:
            return [failure]
        return [self._conditions([prompt], arm, quarantined)[0] for prompt in prompts]

    def _encoded_together(self, prompts: list[Prompt], arm: Arm) -> list[Condition]:
        rows = pad_batch(prompts, self._rows(prompts, self._text))
        return self.runner.encode(rows, arm)[: len(prompts)]

    def _settle(
        self, pictures: list[_Image], arm: str, shard: Shard, largest: int
    ) -> Iterator[Callable[[], ImageRecord]]:
        """A row a picture, in batches of at most ``largest``, smaller where memory asks for it."""
        settled = 0
        while settled < len(pictures):
            size = min(largest, self._ladder.size)
            for row in self._attempt(pictures[settled : settled + size], arm, shard):
                settled += 1
                yield row

    def _attempt(
        self, batch: list[_Image], arm: str, shard: Shard
    ) -> Iterator[Callable[[], ImageRecord]]:
        """A row a picture; or none where the batch did not fit and a smaller one is to be tried."""
        size = self._rows(batch, self._ladder)
        try:
            rows = self._batch(batch, arm, shard)
        except Exception as error:
            _raise_if_lost(error)
            full, failure = _out_of_memory(error), Failure.of(error)
        else:
            self._ladder.grow()
            yield from rows
            return
        # Out of the handler: the traceback no longer holds the failed batch's tensors.
        if full and _asks_for_less(self._ladder, size):
            return
        if len(batch) > 1:
            yield from self._settle(batch, arm, shard, largest=1)
        else:
            yield _given(batch[0].failed(failure))

    def _rows(self, batch: Sequence[Any], ladder: BatchSizeController) -> int:
        """How many rows the device computes at once for these."""
        return ladder.size if self.runner.sampling.padding else min(len(batch), ladder.size) or 1

    def _batch(
        self, batch: list[_Image], arm: str, shard: Shard
    ) -> list[Callable[[], ImageRecord]]:
        drawn_with = self.runner.sampling
        begins = drawn_with.strength is not None
        shape = (arm, drawn_with.height, drawn_with.width, begins)
        start = time.perf_counter()
        rows = pad_batch(batch, self._rows(batch, self._ladder))
        latents = self.runner.denoise(
            [picture.condition or {} for picture in rows], [picture.seed for picture in rows]
        )
        if latents.is_cuda:
            torch.cuda.synchronize()
        denoised = time.perf_counter()
        pixels = self.runner.decode(latents)
        end = time.perf_counter()
        denoised -= pixels.inner_decode_seconds
        measured = {
            "batch": f"{shard.name}-{batch[0].prompt.id}-{batch[0].number}",
            "batch_size": len(batch),
            "batch_seconds": end - start,
            "denoise_seconds": denoised - start,
            "decode_seconds": end - denoised,
            "warm_up": shape not in self._warm,
            "worker": self._worker,
            "steps": drawn_with.steps,
        }
        rate, rung = pixels.frames_per_second, self._ladder.state
        self._warm.add(shape)
        self._times.add("denoise", denoised - start)
        self._times.add("decode", end - denoised)
        return [
            self._threads.submit(
                self._record,
                picture,
                values,
                finite,
                rate,
                measured | {"memory": _memory(rung, picture.text)},
            ).result
            for picture, values, finite in zip(batch, pixels.values, pixels.finite, strict=False)
        ]

    def _record(
        self, picture: _Image, frames: np.ndarray, finite: bool, rate: int, measured: dict
    ) -> ImageRecord:
        if not finite:
            return picture.failed(_NOT_FINITE)
        start = time.perf_counter()
        first = frames[0] if frames.ndim == 4 else frames
        try:
            film = codec.encode_video(frames, self._images.mark, rate) if frames.ndim == 4 else None
            content = codec.encode_image(first, self._images)
        except Exception as error:
            return picture.failed(Failure.of(error))
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
            **picture.row_columns,
        )


def _memory(rung: str | None, text: str | None) -> str | None:
    """What a row says of how memory cut the batches it was in; None: it did not."""
    parts = [rung or "", f"{_TEXT}{text}" if text else ""]
    return ", ".join(filter(None, parts)) or None


def _asks_for_less(ladder: BatchSizeController, size: int) -> bool:
    """Steps down the ladder; False where nothing is left to give up."""
    gc.collect()
    torch.cuda.empty_cache()
    return ladder.shrink(size)


def _given(record: ImageRecord) -> Callable[[], ImageRecord]:
    future: Future[ImageRecord] = Future()
    future.set_result(record)
    return future.result


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
        raise DeviceLost(Failure.of(error).reason) from error
