"""A slice of the fault suite: each kind that needs no other process, once."""

import errno
import os
import random

import damage
import injected
import processes
import pytest
from world import World

from tgate_batch import workflow
from tgate_batch.score import registry


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    before = list(registry.METRICS)  # the world brings a metric of its own
    yield World(tmp_path_factory.mktemp("faults") / "world")
    registry.METRICS[:] = before


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_disk_ends_the_run_with_a_line_that_names_it(world, capsys, number):
    run = world.config()
    refused = OSError(number, os.strerror(number))
    with injected.failing("_create_local", refused, random.Random(0), times=10**9):
        assert world.render(run) == workflow.MISSING
    said = capsys.readouterr()
    assert "stalled" not in said.out + said.err
    (line,) = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert line.startswith(
        f"error: {run.output} cannot be written: {os.strerror(number)}. Fix: make"
    )
    world.resume(run)


@pytest.fixture(scope="module")
def other_world(world, tmp_path_factory):
    """Another config: no picture of it equals one of the first world's."""
    return World(tmp_path_factory.mktemp("faults") / "other", sampling={"seed": 1})


@pytest.mark.parametrize(
    ("config", "rounds"),
    [
        ("another config", 1),
        pytest.param("the same config", 20, marks=pytest.mark.slow),
        pytest.param("another config", 20, marks=pytest.mark.slow),
    ],
)
def test_suspended_driver_that_was_taken_over_writes_nothing_more(
    world, other_world, config, rounds
):
    second = world if config == "the same config" else other_world
    for number in range(rounds):
        rng = random.Random(f"{config} {number}")
        processes.suspended_and_taken_over(world, second, rng)


@pytest.mark.slow
def test_workers_of_a_driver_that_was_taken_over_publish_nothing_more(world, other_world):
    on_ray = processes.ON_RAY
    processes.suspended_and_taken_over(world, other_world, random.Random(0), workers=on_ray)
