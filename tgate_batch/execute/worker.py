"""A worker: loads a model, renders and measures shards, and writes their files. No Ray."""

import gc
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
from PIL import Image

from tgate_batch.config import Config, Model, effective_sampling
from tgate_batch.errors import UserError
from tgate_batch.execute import plugins
from tgate_batch.execute.task import ChunkSummed, Order, PartExtracted, RenderOrder, Result
from tgate_batch.metrics.features import Extractor, load_extractor
from tgate_batch.metrics.weights import unlike_promised
from tgate_batch.models.resolve import resolve_sampling
from tgate_batch.output import history, layout, parquet, prompt_store, seal
from tgate_batch.output.run import device_of
from tgate_batch.records import (
    BatchKey,
    Failure,
    ImageRecord,
    Shard,
    ShardProgress,
    ShardResult,
    row_digest,
)
from tgate_batch.render.timing import Energy, StageTimer
from tgate_batch.score import registry
from tgate_batch.score.aggregate import SumOrder, sum_chunk
from tgate_batch.score.conclusion import ConcludeOrder, Conclusion, ReferenceFigures, conclude
from tgate_batch.score.extractor_facts import ExtractorFacts
from tgate_batch.score.measure import Measured, MeasureOrder, measure
from tgate_batch.score.partial_sums import ArmSums
from tgate_batch.score.reference import load_reference
from tgate_batch.score.reference_file import ReferenceOrder, write_part
from tgate_batch.storage import Folder


class _Progress:
    """Reports the images rendered since the last report, every few seconds."""

    SECONDS = 5.0

    def __init__(self, order: RenderOrder) -> None:
        self._shard = (order.model.name, order.arm, order.shard.index)
        self._last, self._images = time.monotonic(), 0

    def add_image(self) -> ShardProgress | None:
        """Counts an image; returns a report if one is due."""
        self._images += 1
        if time.monotonic() - self._last < self.SECONDS:
            return None
        report = ShardProgress(*self._shard, self._images)
        self._last, self._images = time.monotonic(), 0
        return report


@dataclass(frozen=True)
class _Loaded:
    """A loaded model, and the fingerprint of the files that it was loaded from."""

    model: Model
    renderer: Any
    fingerprint: str | None  # None if its files are not on this machine


def _check_promised(model: Model, here: str | None, promised: str | None) -> None:
    """Raises UserError if a model's files are not those of the promised fingerprint."""
    if promised is not None and here != promised:
        from tgate_batch.models.checkpoint import locate_checkpoint

        name = f"models: {model.name}"
        raise UserError(unlike_promised(name, locate_checkpoint(model), here, promised))


class Worker:
    """One process with one model or extractor at a time. Two calls may overlap; one computes."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        open_runner: Callable[[Model, Config], Any] | None = None,
    ):
        """``open_runner`` loads a model; None for the pipeline of the catalogue."""
        plugins.register(config.plugins)
        self._config = config
        self._folder = folder
        self._open_runner = open_runner
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._times = StageTimer()
        self._device = threading.Lock()
        self._device_name, self._energy = history.CPU, Energy(None)
        self._invariant: bool | None = None
        self._loaded: _Loaded | None = None
        self._metrics: registry.LoadedMetrics | None = None
        self._references: dict[tuple[str, str], ReferenceFigures] = {}
        self._baselines: dict[str, ArmSums] = {}  # by model
        self._extractor: tuple[str, Extractor] | None = None  # of a reference, by its name
        self._abouts: dict[tuple[str, str, BatchKey], dict[str, str]] = {}

    def load(self, model: Model | None) -> int:
        """Loads the model, if one is given. Returns the process id.

        Raises UserError if the model cannot be loaded.
        """
        if model is not None:
            with self._device:
                self._load(model)
        return os.getpid()

    def fingerprint(self, model: Model) -> str | None:
        """Loads the model, and returns the fingerprint of its files."""
        with self._device:
            return self._load(model).fingerprint

    def execute(self, order: Order) -> Iterator[Result]:
        """Carries out an order; yields its results. Raises as the order's method does."""
        match order:
            case RenderOrder():
                yield from self.render(order)
            case MeasureOrder():
                yield from self.measure(order)
            case SumOrder():
                yield from self.sum_chunk(order)
            case ConcludeOrder():
                yield from self.conclude(order)
            case ReferenceOrder():
                yield from self.reference(order)
            case _:
                assert_never(order)

    def render(self, order: RenderOrder) -> Iterator[ShardProgress | ShardResult]:
        """Renders a shard; yields its progress, and its result once the file is written.

        A trial yields no result. Raises DeviceLost if only a new process can continue, and
        UserError if this machine's checkpoint is not the order's.
        """
        shard = prompt_store.load_shard(self._folder, order.shard)
        quarantined = {
            shard.prompts[p].id: Failure("WorkerDied", reason)
            for p, reason in order.quarantined.items()
        }
        if order.only is not None:
            shard = Shard(shard.index, tuple(shard.prompts[p] for p in order.only))
        stored = self._read_records(order) if order.errors_alone else []
        only = {key for key, record in stored if record.status != "ok"} if stored else None
        rows = []
        with self._device:
            renderer = self._load(order.model, order.checkpoint).renderer
            arm = self._config.arms[order.arm]
            progress = _Progress(order)
            for row in renderer.render(shard, order.arm, arm, quarantined, only):
                rows.append(row)
                if (report := progress.add_image()) and order.only is None:
                    yield report
            about = self._about(order)  # may count MACs, so not while a batch is timed
        rendered = {(one.prompt_id, one.image_number): one for one in (row() for row in rows)}
        if order.only is not None:
            return
        records = [rendered.get(key, record) for key, record in stored] or _sort(rendered, shard)
        self._write(order, records, about)
        good = [record for record in records if record.status == "ok"]
        yield ShardResult(
            order.model.name,
            order.arm,
            order.shard.index,
            images=len(good),
            errors=len(records) - len(good),
            seconds=sum((r.batch_seconds or 0) / (r.batch_size or 1) for r in good),
            device=self._device_name,
            host=socket.gethostname(),
            first_error=next((record.error for record in records if record.error), None),
            cut=renderer.cut(shard),
            invariant=self._invariant,
        )

    def _read_records(self, order: RenderOrder) -> list[tuple[tuple[str, int], ImageRecord]]:
        """Returns the rows of the stored file, by key; none if it is missing or damaged."""
        name = layout.shard_file(layout.images(order.model.name, order.arm), order.shard.index)
        try:
            table = parquet.read_table(self._folder, name, identity=order.identity)
        except parquet.DAMAGE:
            return []
        rows = table.to_pylist()
        records = [ImageRecord.of(row) for row in rows]
        model, arm = order.model.name, order.arm
        for row, one in zip(rows, records, strict=True):
            key = (model, arm, one.prompt_id, one.image_number)
            if "digest" in row and row["digest"] != row_digest(*key, one.image, one.video):
                return []
        return [((record.prompt_id, record.image_number), record) for record in records]

    def measure(self, order: MeasureOrder) -> Iterator[Measured]:
        """Measures one shard of all arms."""
        with self._device:
            if self._metrics is None:
                self._loaded = None  # frees memory for the extractor
                limit_threads(self._config)
                self._metrics = registry.load_metrics(
                    self._config.score,
                    self._config.baseline is not None,
                    _available(device_of(self._config)),
                )
            measured = measure(self._folder, order, self._metrics)
        yield measured

    def sum_chunk(self, order: SumOrder) -> Iterator[ChunkSummed]:
        """Sums a chunk of measurements."""
        with self._device:
            self._loaded = None  # frees memory for the sums
            damaged = sum_chunk(self._folder, order)
        yield ChunkSummed(tuple(damaged))

    def conclude(self, order: ConcludeOrder) -> Iterator[Conclusion]:
        """Computes an arm's figures from its sums.

        Raises UserError if a reference cannot be read.
        """
        with self._device:
            self._loaded = None
            references = {facts.name: self._reference(facts, order) for facts in order.extractors}
            known = {name: figures for name, figures in references.items() if figures is not None}
            conclusion = conclude(self._folder, order, known, self._baselines)
        yield conclusion

    def _reference(self, facts: ExtractorFacts, order: ConcludeOrder) -> ReferenceFigures | None:
        """Returns the reference of an extractor, read once; None if the order has none."""
        if facts.name not in order.references:
            return None
        file, sha256 = order.references[facts.name]
        if (facts.name, sha256) not in self._references:
            loaded = load_reference(file, facts)
            if sha256 not in (loaded.sha256, loaded.about.get("sha256")):
                raise UserError(unlike_promised("reference", file, loaded.sha256, sha256))
            self._references[facts.name, sha256] = ReferenceFigures(loaded)
        return self._references[facts.name, sha256]

    def reference(self, order: ReferenceOrder) -> Iterator[PartExtracted]:
        """Extracts one part of a reference and writes its file.

        While one call reads, another may compute. Raises UserError if an image cannot be read or
        this worker's weights differ from the driver's.
        """

        def extract(images: Sequence[Image.Image]) -> np.ndarray:
            with self._device:
                return self._loaded_extractor(order)(images)

        write_part(order, extract)
        yield PartExtracted(len(order.part))

    def _loaded_extractor(self, order: ReferenceOrder) -> Extractor:
        if self._extractor is None or self._extractor[0] != order.extractor:
            self._loaded = None  # frees memory
            limit_threads(self._config)
            device = _available(device_of(self._config))
            loaded = load_extractor(order.extractor, order.weights, device)
            if loaded.sha256 != order.sha256:
                file = order.weights or "its default path"
                name = f"extractor {order.extractor}"
                raise UserError(unlike_promised(name, file, loaded.sha256, order.sha256))
            self._extractor = (order.extractor, loaded)
        return self._extractor[1]

    def _write(self, order: RenderOrder, records: list[ImageRecord], about: dict[str, str]) -> None:
        model, arm = order.model.name, order.arm
        name = layout.shard_file(layout.images(model, arm), order.shard.index)
        errors = sum(record.status != "ok" for record in records)
        about = about | {layout.ERRORS_KEY: str(errors)}
        with self._times.timed("write"):
            parquet.write_records(self._folder, name, model, arm, records, order.identity, about)
        summary = {
            "device": self._device_name,
            "gpu": self._energy.gpu,
            "joules": self._energy.joules(),
            "counted": self._energy.counted(),
            "seconds": self._times.summary(),
        }
        self._folder.write(layout.worker(self._name), json.dumps(seal.with_seal(summary)))

    def _about(self, order: RenderOrder) -> dict[str, str]:
        """Returns the footer that all files of a (model, arm, batch key) share."""
        key = order.model.name, order.arm, order.shard.batch_key
        if key not in self._abouts:
            macs = self._count_macs(order) if order.macs is None else order.macs
            self._abouts[key] = {
                "settings": self._config.arms[order.arm].model_dump_json(),
                "made_by": json.dumps(
                    history.environment(self._device_name) | {"invariant": self._invariant}
                ),
                **{name: json.dumps(value) for name, value in macs.items()},
            }
        return self._abouts[key]

    def _count_macs(self, order: RenderOrder) -> Mapping[str, int]:
        """Counts the MACs that the driver could not count."""
        from tgate_batch.models.macs.arm import generic_macs, macs_of_arm
        from tgate_batch.models.macs.hollow import MacsUnknown, count_loaded

        arm = self._config.arms[order.arm]
        resolved = resolve_sampling(order.model, self._config.sampling)
        sampling = effective_sampling(resolved, row=order.shard.batch_key)
        with self._times.timed("load"), _without_garbage_collection():
            try:
                return macs_of_arm(order.model, arm, sampling).columns()
            except MacsUnknown:
                assert self._loaded is not None
                loaded = self._loaded.renderer.runner
                return generic_macs(*count_loaded(loaded, arm, sampling)).columns()

    def _load(self, model: Model, promised: str | None = None) -> _Loaded:
        """Returns the model, which it loads if necessary.

        Raises UserError if its files have another fingerprint than ``promised``, or changed while
        they were read.
        """
        if self._loaded is None or self._loaded.model != model:
            self._loaded = None  # frees the model before it
            with self._times.timed("load"), _without_garbage_collection():
                before = self._fingerprint(model)
                _check_promised(model, before, before and promised)
                renderer = self._open(model)
                after = self._fingerprint(model)
            _check_promised(model, after, before)
            self._loaded = _Loaded(model, renderer, after)
        _check_promised(model, self._loaded.fingerprint, promised)
        return self._loaded

    def _fingerprint(self, model: Model) -> str | None:
        from tgate_batch.models.checkpoint import resolved_dtype
        from tgate_batch.models.fingerprint import fingerprint

        return fingerprint(model, resolved_dtype(model, device_of(self._config)))

    def _open(self, model: Model) -> Any:
        import torch

        from tgate_batch.models.pipeline_runner import open_runner
        from tgate_batch.render.renderer import Renderer

        limit_threads(self._config)
        if self._config.workers.gpus_each and torch.cuda.is_available():
            self._device_name = torch.cuda.get_device_name()
            self._energy = Energy(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        runner = (self._open_runner or open_runner)(model, self._config)
        self._invariant = _is_invariant(runner)
        return Renderer(runner, self._config.images, self._name, self._times)


def _is_invariant(runner: Any) -> bool | None:
    """True if a padded batch is invariant; None if none is padded or the test fails."""
    try:
        return runner.is_invariant() if runner.sampling.padding else None
    except Exception:  # the first batch raises it again, and its rows report it
        return None


def _sort(records: Mapping[tuple[str, int], ImageRecord], shard: Shard) -> list[ImageRecord]:
    """Returns the rows in the order of the shard's prompts."""
    positions = {prompt.id: position for position, prompt in enumerate(shard.prompts)}
    return [records[key] for key in sorted(records, key=lambda key: (positions[key[0]], key[1]))]


def limit_threads(config: Config) -> None:
    """Sets the threads of torch; on a CPU their number decides the last bits of an image."""
    import torch

    if not config.workers.gpus_each:
        torch.set_num_threads(config.workers.cpus_each)


def _available(device: str) -> str:
    """Returns the device, or the CPU if this process has no GPU."""
    import torch

    return device if torch.cuda.is_available() else "cpu"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Saves a fifth of the time of imports and loading, which leave nothing to collect."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
