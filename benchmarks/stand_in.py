"""A pipeline that returns a constant image at once, so that only the job itself takes time."""

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
    """The part of a ``PipelineRunner`` that a ``Renderer`` uses."""

    pipeline = SimpleNamespace(vae=None)

    def __init__(self, model: Model, config: Config) -> None:
        self.sampling = catalogue.resolve(model.name, config.sampling)
        side = (self.sampling.height, self.sampling.width, 3)
        self._image = np.full(side, 128, np.uint8)

    def batch_settings(self, sampling: ResolvedSampling) -> tuple:
        return ()

    def applying(
        self, arm: Arm, sampling: ResolvedSampling | None = None
    ) -> AbstractContextManager:
        return nullcontext()

    def is_invariant(self) -> bool:
        return True

    def encoding_key(self, arm: Arm) -> str:
        return ""

    def encode(self, prompts: list[Prompt], arm: Arm | None = None) -> list[Condition]:
        return [{} for _ in prompts]

    def cut(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return []

    def truncated_negatives(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return []

    def denoise(self, conditions: list[Condition], seeds: list[int]) -> torch.Tensor:
        return torch.zeros(len(conditions), 1)

    def decode(self, latents: Any) -> Pixels:
        count = len(latents)
        return Pixels(np.stack([self._image] * count), np.ones(count, bool))
