"""One process of a run: loads a model, renders and measures shards, writes their files. No Ray."""

import gc
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tgate_batch.config import Config, Model
from tgate_batch.output import parquet
from tgate_batch.output.run import Run
from tgate_batch.prompts.read import ShardPlan
from tgate_batch.records import Receipt, Shard
from tgate_batch.render.time_sheet import Energy, Stages


class Worker:
    """One process with one model or extractor; renders and measures shards, writes their files."""

    def __init__(self, run: Run, open_runner: Callable[[Model, Config], Any] | None = None):
        """``open_runner`` loads a model; None: what the catalogue says."""
        self._stages = Stages()
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._run = run
        self._config = run.config
        self._open_runner = open_runner
        self._device = threading.Lock()  # two tasks overlap, but only one computes
        self._loaded: tuple[str, Any] | None = None
        self._asked: Any = None
        self._known: dict[tuple[str, str], dict[str, str]] = {}

    def stand(self, model: Model | None) -> int:
        """Answers when the worker stands, ``model`` loaded: its process id. Raises UserError."""
        if model is not None:
            with self._device:
                self._renderer(model)
        return os.getpid()

    def render(
        self,
        model: Model,
        shard: Shard,
        arms: tuple[str, ...],
        quarantined: dict[str, str],
        keep: bool,
    ) -> Iterator[Receipt]:
        """Yields a receipt an arm, after its file stands; ``keep`` False: a trial, no file."""
        from tgate_batch.render.shard import DeviceLost

        for arm in arms:
            try:
                with self._device:
                    renderer = self._renderer(model)
                    rows = list(renderer.render(shard, arm, self._config.arms[arm], quarantined))
                    about = self._about(model, arm)  # counts MACs: not while a batch is timed
            except DeviceLost:
                os._exit(1)  # a fresh process takes the shard
            records = [row() for row in rows]
            if keep:
                self._write(
                    parquet.images_name(model.name, arm, shard.index), shard, records, about
                )
            good = [record for record in records if record.status == "ok"]
            yield Receipt(
                model.name,
                arm,
                shard.index,
                images=len(good),
                errors=len(records) - len(good),
                seconds=sum(record.batch_seconds / record.batch_size for record in good),
            )

    def measure(self, model: str, arm: str, shard: ShardPlan) -> str | None:
        """Measures one shard unless that was done before; returns why it could not."""
        from tgate_batch.score import figures as score

        with self._device:
            if self._asked is None:
                self._loaded = None  # makes room for the extractor
                self._limit_threads()
                self._asked = score.asked(self._run)
            return score.measure_shard(self._run, self._asked, model, arm, shard)

    def _write(self, name: str, shard: Shard, records: list, about: dict[str, str]) -> None:
        with self._stages.timed("write"):
            parquet.write_records(self._run.folder, name, records, shard.digest, about)
        summary = {
            "device": self._device_name,
            "gpu": self._energy.gpu,
            "joules": self._energy.joules(),
            "seconds": self._stages.summary(),
        }
        self._run.folder.write(f"workers/{self._name}.json", json.dumps(summary))

    def _about(self, model: Model, name: str) -> dict[str, str]:
        """What every file of a (model, arm) says of itself."""
        from tgate_batch.models.macs import macs_of_arm

        if (model.name, name) not in self._known:
            arm = self._config.arms[name]
            with self._stages.timed("load"), _without_collection():
                macs = macs_of_arm(model, arm, self._run.sampling(model.name)).columns()
            self._known[model.name, name] = {
                "model": model.name,
                "arm": name,
                "settings": arm.model_dump_json(),
                "device": self._device_name,
                **{key: json.dumps(value) for key, value in macs.items()},
            }
        return self._known[model.name, name]

    def _limit_threads(self) -> None:
        import torch

        if not self._config.workers.gpus_each:
            torch.set_num_threads(self._config.workers.cpus_each)

    def _renderer(self, model: Model) -> Any:
        if self._loaded is None or self._loaded[0] != model.name:
            self._loaded = None  # frees the model before it
            with self._stages.timed("load"), _without_collection():
                self._loaded = (model.name, self._opened(model))
        return self._loaded[1]

    def _opened(self, model: Model) -> Any:
        import torch

        from tgate_batch.models.runner import open_runner
        from tgate_batch.render.shard import Renderer

        self._limit_threads()
        self._device_name, gpu = "CPU", None
        if self._config.workers.gpus_each and torch.cuda.is_available():
            self._device_name = torch.cuda.get_device_name()
            gpu = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        self._energy = Energy(gpu)
        runner = (self._open_runner or open_runner)(model, self._config)
        return Renderer(runner, self._config.images, self._name, self._stages)


@contextmanager
def _without_collection() -> Iterator[None]:
    """What importing and loading make stays: looking for garbage in it is a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
