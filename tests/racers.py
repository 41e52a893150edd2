"""Drivers in processes of their own that claim an output folder at one moment."""

import json
import multiprocessing
from collections.abc import Callable
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.output import layout
from tgate_batch.output.lock import output_lock
from tgate_batch.storage import Folder

TOKEN = "0123456789abcdef" * 2
LEFT = {"host": "elsewhere", "pid": 7, "since": "2026-01-01 10:00:00 +0000", "token": TOKEN}


def leave_a_dead_claim(folder: Folder) -> None:
    """What a driver that was killed on another machine leaves."""
    folder.write(layout.claim_key(TOKEN), json.dumps(LEFT))
    folder.write(layout.CLAIM, json.dumps(LEFT | {"beats": 12}))


def owners(
    place: Callable[[int], str], rounds: int, racers: int, dead: bool, beat: float
) -> list[int]:
    """How many of the racers own the folder in each round, all at one time."""
    uris = [place(number) for number in range(rounds)]
    if dead:
        for uri in uris:
            leave_a_dead_claim(Folder(uri))
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(racers), context.Queue()
    processes = [
        context.Process(target=_race, args=(uris, beat, barrier, won)) for _ in range(racers)
    ]
    for process in processes:
        process.start()
    try:
        each = [won.get(timeout=300) for _ in processes]
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return [sum(one) for one in zip(*each, strict=True)]


def _race(uris: list[str], beat: float, barrier: Any, won: Any) -> None:
    found = []
    for uri in uris:
        folder = Folder(uri)
        barrier.wait()
        try:
            with output_lock(folder, beat_seconds=beat):
                barrier.wait()
                found.append(True)
        except UserError:
            barrier.wait()
            found.append(False)
        except BaseException:
            barrier.abort()  # the others fail too, and soon
            raise
    won.put(found)
