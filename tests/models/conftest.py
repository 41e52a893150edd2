"""Tiny models, ready to draw."""

import pytest

from tgate_batch.config import Sampling
from tgate_batch.models import catalogue
from tgate_batch.models.pipeline_runner import PipelineRunner


@pytest.fixture(scope="session")
def tiny_runner():
    """``tiny_runner(name, steps)``: a family's tiny model with so many steps of 64x64 pixels."""
    made: dict[tuple[str, int], PipelineRunner] = {}

    def get(name: str, steps: int) -> PipelineRunner:
        if (name, steps) not in made:
            sampling = catalogue.resolve(name, Sampling(steps=steps, height=64, width=64))
            family = catalogue.family_of(name)
            made[name, steps] = PipelineRunner(catalogue.tiny(name), family, sampling)
        return made[name, steps]

    return get
