"""Pipelines that replace a run's own, and fail as the tests request.

The request is a file, so that workers in other processes read it too. Faults that happen a number
of times are counted by files in the same folder.
"""

import json
import os
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stand_in import StandIn
from tgate_batch.config import Arm, Config, Model
from tgate_batch.metrics.base import ImageMetric
from tgate_batch.models.family import Condition
from tgate_batch.models.pipeline_runner import PipelineRunner, Pixels, open_runner
from tgate_batch.records import Prompt

VARIABLE = "TGATE_BATCH_MISCHIEF"  # the environment's name for the file
ALWAYS = 10**9


@dataclass(frozen=True)
class Mischief:
    """The faults of the workers. Texts are parts of prompts."""

    seconds: float = 0.0  # a batch
    raises: str = ""
    raises_each: int = 0  # for images whose seed is a multiple of it
    nan: str = ""
    memory: int = 0  # images that fit into memory; 0: all
    memory_times: int = ALWAYS
    dies: str = ""
    dies_times: int = ALWAYS
    hangs: str = ""
    hangs_times: int = ALWAYS
    dies_measuring: int = 0  # times
    starts_not: int = 0  # times
    bad: int = 0  # workers that fail at everything

    def request(self) -> None:
        """Requests this of all workers from now on."""
        file = Path(os.environ[VARIABLE])
        for flag in file.parent.glob(f"{file.name}-*"):
            flag.unlink()
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(file)

    @classmethod
    def read(cls) -> "Mischief":
        """Reads the last request."""
        return cls(**json.loads(Path(os.environ[VARIABLE]).read_text()))

    def is_due(self, name: str, times: int) -> bool:
        """True if a fault that happens ``times`` times over all processes is due now."""
        if times == ALWAYS:
            return True
        for number in range(times):
            try:
                Path(f"{os.environ[VARIABLE]}-{name}-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


class Painter(StandIn):
    """Images of one colour each, which depends only on the seed."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__(model, config)
        mischief = Mischief.read()
        if mischief.is_due("starts-not", mischief.starts_not):
            raise RuntimeError("this worker does not start")
        self._bad = mischief.is_due("bad", mischief.bad)

    def applying(self, arm: Arm, sampling: Any = None) -> AbstractContextManager:  # comes first
        if self._bad:
            raise RuntimeError("this worker is bad")
        return super().applying(arm, sampling)

    def encode(self, prompts: list[Prompt], arm: Arm | None = None) -> list[Condition]:
        return [{"text": prompt.text} for prompt in prompts]

    def denoise(self, conditions: list[Condition], seeds: list[int]) -> Any:
        texts = [condition["text"] for condition in conditions]
        self._broken = misbehave(texts, seeds)
        return torch.tensor(seeds)

    def decode(self, latents: Any) -> Pixels:
        colours = [np.random.default_rng(seed).integers(0, 256, 3) for seed in latents.tolist()]
        pictures = np.stack([np.full((16, 16, 3), colour, np.uint8) for colour in colours])
        return Pixels(pictures, ~np.array(self._broken))


class OwnModel(PipelineRunner):
    """The config's own model."""

    @classmethod
    def opened(cls, model: Model, config: Config) -> "OwnModel":
        own = open_runner(model, config)
        return cls(own.pipeline, own.family, own.sampling, own.engine)

    def denoise(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        misbehave([], seeds)
        return super().denoise(conditions, seeds)


def misbehave(texts: list[str], seeds: list[int]) -> list[bool]:
    """Applies the requested faults to a batch; returns which of its images become NaN."""
    mischief = Mischief.read()
    time.sleep(mischief.seconds)

    def says(part: str) -> bool:
        return bool(part) and any(part in text for text in texts)

    if says(mischief.dies) and mischief.is_due("dies", mischief.dies_times):
        os._exit(1)
    if says(mischief.hangs) and mischief.is_due("hangs", mischief.hangs_times):
        time.sleep(3600)
    if (
        mischief.memory
        and len(seeds) > mischief.memory
        and mischief.is_due("memory", mischief.memory_times)
    ):
        raise torch.OutOfMemoryError("does not fit")
    if says(mischief.raises):
        raise RuntimeError(f"cannot paint {mischief.raises}")
    if mischief.raises_each and any(seed % mischief.raises_each == 0 for seed in seeds):
        raise RuntimeError("cannot paint each of them")
    return [bool(mischief.nan) and mischief.nan in text for text in texts]


def _load(weights: str | None, device: str) -> Any:
    def measure(images: list, prompts: list, baselines: Any = None) -> np.ndarray:
        if Mischief.read().is_due("dies_measuring", Mischief.read().dies_measuring):
            os._exit(1)
        return np.array([np.asarray(image).mean() for image in images])

    return measure


METRIC = ImageMetric(
    name="brightness",
    heading="brightness",
    pattern="{:.1f}",
    load=_load,
    better="higher",
)
