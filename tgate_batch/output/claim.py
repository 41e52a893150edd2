"""One driver at a time owns an output folder (``claim.json``).

The claim says who works here: host, process and time. A claim whose holder is dead is taken over.
On this machine the process table says so. On another one the claim's own beat does: its holder
renews it, so one that stands still for some beats has no holder. No clocks are compared.

It also says what its holder has to say of itself, so that a killed one has said it.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from tgate_batch.errors import StorageError, UserError
from tgate_batch.output import history, layout, shapes
from tgate_batch.storage import Folder

BEAT_SECONDS = 10.0
_BEATS_OF_PATIENCE = 3
_ON_A_DISK = 5  # times as often, where a beat costs next to nothing

_held: set[str] = set()  # tokens of this process's own claims, as long as it works under them


@contextmanager
def claimed(
    folder: Folder,
    says: Callable[[], dict[str, Any]] = dict,
    beat_seconds: float = BEAT_SECONDS,
) -> Iterator[None]:
    """Owns the folder for the length of the block; each beat carries what ``says`` returns then.

    What killed workers left under temporary names is gone when the block ends.
    Raises UserError, naming host, process and time, where another driver owns it, and where the
    folder cannot be written.
    """
    claim = _mine() | says()
    try:
        while not folder.write_first(layout.CLAIM, json.dumps(claim)):
            _bury(folder, beat_seconds)
            folder.delete(layout.CLAIM)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"output {folder} cannot be written: {reason}") from None
    except StorageError as error:
        raise UserError(f"output {error}") from None
    _held.add(claim["token"])
    ended = threading.Event()
    each = beat_seconds / _ON_A_DISK if folder.local else beat_seconds
    beat = threading.Thread(target=_renew, args=(folder, claim, says, ended, each), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        _held.discard(claim["token"])
        with suppress(StorageError):  # a claim that stays has a dead holder, and is taken over
            folder.clear_temporary()
            folder.hasty.delete(layout.CLAIM)


def _mine() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": uuid.uuid4().hex,
        "beats": 0,
    }


def _renew(
    folder: Folder,
    claim: dict[str, Any],
    says: Callable[[], dict[str, Any]],
    ended: threading.Event,
    beat_seconds: float,
) -> None:
    while not ended.wait(beat_seconds):
        claim |= says() | {"beats": claim["beats"] + 1}
        try:
            folder.hasty.write(layout.CLAIM, json.dumps(claim))
        except (OSError, StorageError):
            continue  # a storage that is away for a moment; the next beat tries again


def _bury(folder: Folder, beat_seconds: float) -> None:
    """Ends the invocation of a dead claim in its place; raises UserError where it is alive."""
    claim = _read(folder)
    if claim is None:
        return
    if not _is_alive(folder, claim, beat_seconds):
        history.end_killed(folder, claim)
        return
    raise UserError(
        f"output {folder} is in use: process {claim['pid']} on {claim['host']} has worked there "
        f"since {claim['since']}; wait for it, stop it, or give another output"
    )


def _read(folder: Folder) -> dict[str, Any] | None:
    try:
        return shapes.checked(shapes.parsed(folder.get(layout.CLAIM) or b"{}"), shapes.ClaimFile)
    except ValueError:
        return None


def _is_alive(folder: Folder, claim: dict[str, Any], beat_seconds: float) -> bool:
    if claim["host"] == socket.gethostname():
        if claim["pid"] == os.getpid():
            return claim.get("token") in _held
        try:
            started = psutil.Process(claim["pid"]).create_time()
        except psutil.Error:
            return False
        return abs(started - claim.get("process_started", started)) < 1  # else: its number, reused
    for _ in range(2 * _BEATS_OF_PATIENCE):
        time.sleep(beat_seconds / 2)
        now = _read(folder)
        if now is None or (now.get("token"), now.get("beats")) != (
            claim.get("token"),
            claim.get("beats"),
        ):
            return now is not None
    return False


def holder(folder: Folder) -> dict[str, Any] | None:
    """Who has the folder claimed; None where nobody has, or the process is dead on this machine.

    Whether one on another machine is alive would take half a minute to tell.
    """
    claim = _read(folder)
    if claim is None or (claim["host"] == socket.gethostname() and not _is_alive(folder, claim, 0)):
        return None
    return claim


def check_free(folder: Folder, beat_seconds: float = BEAT_SECONDS) -> None:
    """Raises UserError where a living driver owns the folder; claims nothing."""
    claim = _read(folder) if folder.exists(layout.CLAIM) else None
    if claim is not None and _is_alive(folder, claim, beat_seconds):
        raise UserError(
            f"output {folder} is in use: process {claim['pid']} on {claim['host']} has worked "
            f"there since {claim['since']}; wait for it, or stop it"
        )
