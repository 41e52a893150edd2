"""Faults through the seams of pipeline and storage: each a round in this process, in a second."""

import errno
import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from painter import Mischief
from world import WORDS, World, refused_or_done, rows, some

from tgate_batch import workflow
from tgate_batch.errors import StorageError
from tgate_batch.execute import pool
from tgate_batch.output import history, lock
from tgate_batch.records import image_seed
from tgate_batch.storage import Folder

Round = Callable[[World, random.Random], None]


def one_prompt_raises(world: World, rng: random.Random) -> None:
    run, word = world.config(), some(rng)
    assert world.render(run, Mischief(raises=word)) == workflow.DONE
    world.check(run, failed=[word])
    assert world.render(run, retry_errors=True) == workflow.DONE
    world.check(run)


def each_seventh_raises(world: World, rng: random.Random) -> None:
    run = world.config()
    assert world.render(run, Mischief(raises_each=7)) == workflow.DONE
    seventh = {
        (word, number)
        for word, number in itertools.product(WORDS, (0, 1))
        if image_seed(0, word, number) % 7 == 0
    }
    failed = {key[1:] for key, row in rows(run).items() if row.status == "error"}
    assert failed == seventh
    assert world.render(run, retry_errors=True) == workflow.DONE
    world.check(run)


def all_raise(world: World, rng: random.Random) -> None:
    run = world.config(max_errors=rng.choice([None, 0.5, 10, 0]))
    assert world.render(run, Mischief(raises="picture")) == workflow.MISSING
    world.render(run, retry_errors=True)
    world.check(run)


def picture_of_nan(world: World, rng: random.Random) -> None:
    run, word = world.config(), some(rng)
    assert world.render(run, Mischief(nan=word)) == workflow.DONE
    world.check(run, failed=[word])
    assert world.render(run, retry_errors=True) == workflow.DONE
    world.check(run)


def out_of_memory_above_a_size(world: World, rng: random.Random) -> None:
    run = world.config()
    mischief = Mischief(memory=rng.choice([1, 2, 3]), memory_times=rng.choice([1, 5, 10**9]))
    assert world.render(run, mischief) == workflow.DONE
    world.check(run)


def full_disk(world: World, rng: random.Random) -> None:
    """Writing fails some times in a row, as where a disk is full until someone clears it."""
    run = world.config()
    full = OSError(errno.ENOSPC, "No space left on device")
    with failing("_create_local", full, rng, times=2), quick():
        refused_or_done(world, run)
    world.render(run)
    world.check(run)


def storage_outage(world: World, rng: random.Random) -> None:
    """Reading, listing and writing all fail, some times in a row."""
    run = world.config()
    with (
        failing("_create_local", ConnectionError("storage is away"), rng, times=2),
        failing("open", StorageError("storage is away"), rng, times=1),
        quick(),
    ):
        refused_or_done(world, run)
    world.render(run)
    world.check(run)


def stopped_in_the_middle_of_a_write(world: World, rng: random.Random) -> None:
    """The process goes with half a file written, and clears nothing."""
    run = world.config()
    with dying_while_writing(rng), suppress(SystemExit):
        world.render(run)
    world.render(run)
    world.check(run)


def another_version(world: World, rng: random.Random) -> None:
    """A run that was stopped goes on under other versions of packages."""
    run = world.config()
    with stopped_after(rng.randrange(1, 12)):
        stop(world, run)
    other = {"versions": {"torch": "99.0", "diffusers": "99.0"}, "git": None}
    with mock.patch.object(history, "software", return_value=other):
        assert world.render(run) == workflow.DONE
    world.check(run)


def clock_set_back(world: World, rng: random.Random) -> None:
    """The wall clock jumps back by an hour in the middle of a run, and another run goes on."""
    run = world.config()
    now, jump = time.time, rng.choice([3600, 86400])
    calls = itertools.count()

    def set_back() -> float:
        return now() - jump * (next(calls) > 3)

    with (
        mock.patch.object(time, "time", side_effect=set_back),
        stopped_after(rng.randrange(1, 12)),
    ):
        stop(world, run)
    assert world.render(run) == workflow.DONE
    world.check(run)


def two_drivers(world: World, rng: random.Random) -> None:
    """A second run finds the first at work, and is refused before it does anything."""
    run = world.config()
    with lock.output_lock(Folder(run.output)):
        assert "is in use" in refused_or_done(world, run)
    assert world.render(run) == workflow.DONE
    world.check(run)


def prompts_changed_during_a_run(world: World, rng: random.Random) -> None:
    """The prompts' file changes after some shards: the run goes on with those it froze."""
    run = world.config()
    try:
        with stopped_after(rng.randrange(1, 12), then=lambda: world.write_prompts(WORDS[::-1])):
            assert world.render(run) == workflow.DONE
        world.check(run)
        assert "other prompts" in refused_or_done(world, run)
    finally:
        world.write_prompts()
    assert world.render(run) == workflow.DONE
    world.check(run)


def output_is_read_only(world: World, rng: random.Random) -> None:
    """From some file on, nothing can be written: one line, and the next run goes on."""
    run = world.config()
    refused = OSError(errno.EROFS, "Read-only file system")
    with failing("_create_local", refused, rng, times=10**9), quick():
        assert refused_or_done(world, run) != "0"
    assert world.render(run) == workflow.DONE
    world.check(run)


def output_removed_meanwhile(world: World, rng: random.Random) -> None:
    """Someone deletes files of the run: what is missing is said, and made by the next run."""
    run = world.config()
    gone = rng.randrange(2, 12)

    def remove() -> None:
        folder = Folder(run.output)
        names = folder.names("images")
        for name in rng.sample(names, min(len(names), 2)):
            folder.delete(name)

    with stopped_after(gone, then=remove):
        assert world.render(run) == workflow.MISSING
    assert world.render(run) == workflow.DONE
    world.check(run)


@contextmanager
def failing(method: str, error: Exception, rng: random.Random, times: int) -> Iterator[None]:
    """A method of the storage raises some times in a row, from a random call on."""
    whole = getattr(Folder, method)
    calls = itertools.count()
    first = rng.randrange(4, 40)

    def faulty(self: Folder, *rest: Any) -> Any:
        if first <= next(calls) < first + times:
            raise error
        return whole(self, *rest)

    with mock.patch.object(Folder, method, faulty):
        yield


@contextmanager
def dying_while_writing(rng: random.Random) -> Iterator[None]:
    """The process exits with half of a file written, from a random file on."""
    whole = Folder.create
    first, calls = rng.randrange(4, 25), itertools.count()

    @contextmanager
    def faulty(self: Folder, name: str) -> Iterator[Any]:
        with whole(self, name) as stream:
            yield stream
            if next(calls) == first:
                raise SystemExit(1)

    with mock.patch.object(Folder, "create", faulty):
        yield


class _Stopped(BaseException):
    pass


@contextmanager
def stopped_after(files: int, then: Callable[[], None] | None = None) -> Iterator[None]:
    """After so many picture files something happens; without ``then`` the run ends there."""
    whole = Folder.create
    written = itertools.count(1)

    @contextmanager
    def counting(self: Folder, name: str) -> Iterator[Any]:
        with whole(self, name) as stream:
            yield stream
        if name.startswith("images/") and next(written) == files:
            if then is None:
                raise _Stopped
            then()

    with mock.patch.object(Folder, "create", counting):
        yield


def stop(world: World, run: Any) -> None:
    try:
        world.render(run)
    except _Stopped:
        return
    raise AssertionError("the run was not stopped")


@contextmanager
def quick() -> Iterator[None]:
    """The pool's pauses take no time."""
    with mock.patch.object(pool, "_LONGEST_PAUSE", 0.01):
        yield


ROUNDS: dict[str, tuple[Round, int]] = {
    "a prompt raises": (one_prompt_raises, 10),
    "each 7th picture raises": (each_seventh_raises, 4),
    "all pictures raise": (all_raise, 6),
    "a picture of NaN": (picture_of_nan, 8),
    "out of memory above a size": (out_of_memory_above_a_size, 12),
    "full disk": (full_disk, 12),
    "storage outage": (storage_outage, 12),
    "stopped in the middle of a write": (stopped_in_the_middle_of_a_write, 10),
    "another version": (another_version, 6),
    "clock set back": (clock_set_back, 6),
    "two drivers": (two_drivers, 4),
    "prompts changed during a run": (prompts_changed_during_a_run, 6),
    "read-only output": (output_is_read_only, 8),
    "files removed meanwhile": (output_removed_meanwhile, 8),
}
