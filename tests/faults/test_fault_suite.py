"""A slice of the fault suite: each kind that needs no other process, once."""

import random

import damage
import injected
import pytest
from world import World

from tgate_batch.score import metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    before = list(metrics.METRICS)  # the world brings a metric of its own
    yield World(tmp_path_factory.mktemp("faults") / "world")
    metrics.METRICS[:] = before


@pytest.mark.parametrize("kind", injected.ROUNDS)
def test_fault_on_the_way_loses_doubles_and_changes_nothing(world, kind):
    one, _ = injected.ROUNDS[kind]
    one(world, random.Random(kind))


@pytest.mark.parametrize(
    "kind",
    [
        "pictures: truncated",
        "measurements: zeroed",
        "scores: removed",
        "the ledger: truncated",
        "the run's config: zeroed",
        "planted: damaged.json",
        "planted: made_of.json",
    ],
)
def test_damage_is_told_repaired_and_made_again(world, kind):
    one, _ = damage.ROUNDS[kind]
    one(world, random.Random(kind))
