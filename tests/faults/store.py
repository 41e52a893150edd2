"""Faults of an object store, and of runs that write to one."""

import logging
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from injected import quick, stopped_after, stopped_in_the_middle_of_a_write
from object_store import Store
from processes import disturbed, signal_the_driver
from world import World, refused_or_done

from tgate_batch import workflow
from tgate_batch.storage import Folder


class WorldOnAStore(World):
    """A world whose outputs are in a bucket."""

    def __init__(self, place: Path):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.store = Store()
        super().__init__(place)

    def output(self, name: str) -> str:
        return self.store.uri(name, "KEY:SECRET@")


Round = Callable[[WorldOnAStore, random.Random], None]


def outage(world: WorldOnAStore, rng: random.Random) -> None:
    """The store goes away in the middle of a run, for some seconds, and is waited for."""
    run = world.config()
    away = partial(world.store.returns_after, rng.uniform(0.5, 4))
    with stopped_after(rng.randrange(1, 12), then=away):
        assert world.render(run) == workflow.DONE
    world.check(run)


def outage_that_lasts(world: WorldOnAStore, rng: random.Random) -> None:
    """The store is away for longer than anybody waits: one line, and the next run goes on."""
    run = world.config()
    away = partial(setattr, world.store, "away", True)
    with (
        mock.patch.object(Folder, "patience", 0.0),
        stopped_after(rng.randrange(1, 12), then=away),
        quick(),
    ):
        assert refused_or_done(world, run) != "0"
    world.store.away = False
    assert world.render(run) == workflow.DONE
    world.check(run)


def upload_breaks_off(world: WorldOnAStore, rng: random.Random) -> None:
    """Some uploads in a row end in the middle, and are tried again."""
    run = world.config()
    some = partial(setattr, world.store, "breaks_off", rng.randrange(1, 6))
    with stopped_after(rng.randrange(1, 12), then=some):
        assert world.render(run) == workflow.DONE
    world.check(run)


def killed_driver(world: WorldOnAStore, rng: random.Random) -> None:
    """``kill -9``, of a driver that draws and uploads itself."""
    kill = signal_the_driver(signal.SIGKILL)
    disturbed(world, rng, None, kill, (-9, 0), workers={"executor": "local"})


ROUNDS: dict[str, tuple[Round, int]] = {
    "a store's outage of seconds": (outage, 3),
    "a store's outage that lasts": (outage_that_lasts, 2),
    "a store's upload breaks off": (upload_breaks_off, 3),
    "stopped while a store's file is made": (stopped_in_the_middle_of_a_write, 3),
    "kill -9 of a driver on a store": (killed_driver, 2),
}
