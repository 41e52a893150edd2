"""A pipeline that draws a constant picture at once: what is left is the job itself."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tgate_batch.config import Arm, Config, Model, ResolvedSampling
from tgate_batch.models import catalogue
from tgate_batch.models.family import Condition
from tgate_batch.models.pipeline_runner import Pixels
from tgate_batch.records import Prompt


class StandIn:
    """What a ``Renderer`` asks of a ``PipelineRunner``."""

    pipeline = SimpleNamespace(vae=None)

    def __init__(self, model: Model, config: Config) -> None:
        self.sampling = catalogue.resolve(model.name, config.sampling)
        side = (self.sampling.height, self.sampling.width, 3)
        self._picture = np.full(side, 128, np.uint8)

    def together(self, sampling: ResolvedSampling) -> tuple:
        return ()

    def under(self, arm: Arm, sampling: ResolvedSampling | None = None) -> AbstractContextManager:
        return nullcontext()

    def is_invariant(self) -> bool:
        return True

    def encoded_as(self, arm: Arm) -> str:
        return ""

    def encode(self, prompts: list[Prompt], arm: Arm | None = None) -> list[Condition]:
        return [{} for _ in prompts]

    def cut(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return []

    def cut_negatives(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return []

    def denoise(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        return torch.zeros(len(conditions), 1)

    def decode(self, latents: Any) -> Pixels:
        count = len(latents)
        return Pixels(np.stack([self._picture] * count), np.ones(count, bool))
