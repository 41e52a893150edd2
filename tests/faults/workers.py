"""Faults inside workers that have processes of their own: they die, hang, fail at everything.

The driver is this process; the workers are those of a shared cluster.
"""

import os
import random
from collections.abc import Callable
from unittest import mock

from painter import Mischief
from processes import ON_RAY, Cluster
from world import World, refused_or_done, rows, some

from tgate_batch import workflow
from tgate_batch.config import Config
from tgate_batch.execute import ray

Round = Callable[[World, random.Random], None]


def join(cluster: Cluster) -> None:
    """From here on runs of this process are of this cluster."""
    with mock.patch.dict(os.environ, {"RAY_ADDRESS": cluster.address}):
        ray.start()


def prompt_kills_its_worker(world: World, rng: random.Random) -> None:
    """Each time: the prompt becomes a row with its error, and no other does."""
    run, word = on_ray(world), some(rng)
    assert world.render(run, Mischief(dies=word)) == workflow.DONE
    became_errors(world, run, word)


def prompt_kills_some_workers(world: World, rng: random.Random) -> None:
    run = on_ray(world)
    mischief = Mischief(dies=some(rng), dies_times=rng.choice([1, 2]))
    assert world.render(run, mischief) == workflow.DONE
    world.check(run)


def prompt_hangs_its_worker(world: World, rng: random.Random) -> None:
    """Each time: as one that kills it."""
    run, word = on_ray(world, hang_after=HANG_AFTER), some(rng)
    assert world.render(run, Mischief(hangs=word)) == workflow.DONE
    became_errors(world, run, word)


def prompt_hangs_some_workers(world: World, rng: random.Random) -> None:
    run = on_ray(world, hang_after=HANG_AFTER)
    mischief = Mischief(hangs=some(rng), hangs_times=rng.choice([1, 2]))
    assert world.render(run, mischief) == workflow.DONE
    world.check(run)


def dies_while_measuring(world: World, rng: random.Random) -> None:
    run = on_ray(world)
    assert world.render(run, Mischief(dies_measuring=rng.choice([1, 2]))) == workflow.DONE
    world.check(run)


def some_are_bad(world: World, rng: random.Random) -> None:
    """One or two workers fail at everything they are given: others do the work."""
    run = on_ray(world)
    assert world.render(run, Mischief(bad=rng.choice([1, 2]))) == workflow.DONE
    world.check(run)


def all_are_bad(world: World, rng: random.Random) -> None:
    """Every worker fails at everything: the run ends, and says that much is missing."""
    run = on_ray(world)
    assert world.render(run, Mischief(bad=100)) == workflow.MISSING
    world.resume(run)


def some_do_not_start(world: World, rng: random.Random) -> None:
    run = on_ray(world)
    assert world.render(run, Mischief(starts_not=rng.choice([1, 2]))) == workflow.DONE
    world.check(run)


def none_starts(world: World, rng: random.Random) -> None:
    """One line says why, and the next run goes on."""
    run = on_ray(world)
    assert "did not start" in refused_or_done(world, run, Mischief(starts_not=100))
    world.resume(run)


def on_ray(world: World, **workers: object) -> Config:
    return world.config(workers={**ON_RAY, **workers})


def became_errors(world: World, run: Config, word: str) -> None:
    """The word's pictures are error rows that name the worker's death; drawn again, they are
    as all others."""
    world.check(run, failed=[word])
    kinds = {row.error_kind for row in rows(run).values() if row.status == "error"}
    assert kinds == {"WorkerDied"}, kinds
    world.resume(run, retry_errors=True)


HANG_AFTER = 3.0  # seconds
ROUNDS: dict[str, tuple[Round, int]] = {
    "a prompt kills its worker": (prompt_kills_its_worker, 1),
    "a prompt kills one or two workers": (prompt_kills_some_workers, 2),
    "a prompt hangs its worker": (prompt_hangs_its_worker, 1),
    "a prompt hangs one or two workers": (prompt_hangs_some_workers, 1),
    "a worker dies while measuring": (dies_while_measuring, 1),
    "some workers fail at everything": (some_are_bad, 2),
    "all workers fail at everything": (all_are_bad, 1),
    "some workers do not start": (some_do_not_start, 1),
    "no worker starts": (none_starts, 1),
}
