"""The lock of an output folder: one driver at a time owns it.

A driver writes a key, ``claim-<token>.json``, under a name that no other driver uses. It owns the
folder once a later listing shows no other key. Of two drivers, the one that wrote its key later
sees the other's key, so two drivers never own the folder. The storage only has to list files that
were written before: no hard links, no conditional writes.

The owner renews ``claim.json`` periodically: each heartbeat also carries the run's progress, so the
record survives a kill. A claim without heartbeats is dead, and the next driver deletes its key.
Clocks, boot times and host names are not compared. A process that does not exist is taken for dead
at once only if process ids mean the same to both drivers (same boot and same PID namespace).

A driver without its key has lost the folder: the key is the fence of its ``Folder`` and of its
workers' copies, so they can write nothing any more (``tgate_batch/storage/folder.py``).
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tgate_batch.errors import OutputLost, StorageError, UserError, one_line, os_reason
from tgate_batch.output import history, layout, shapes, shutdown
from tgate_batch.storage import Folder

BEAT_SECONDS = 10.0
_BEATS_OF_PATIENCE = 3
_ON_A_DISK = 5  # times as often, because a heartbeat on a disk is cheap
_TRIES = 5  # to write a key: the previous owner may remove the unfinished file

Claim = dict[str, Any]

_active: set[str] = set()  # tokens of this process's claims, while it works under them


@contextmanager
def output_lock(
    folder: Folder,
    progress: Callable[[], dict[str, Any]] = dict,
    beat_seconds: float | None = None,
) -> Iterator[str]:
    """Owns the folder inside the block; each heartbeat carries the result of ``progress``.

    Yields the fence, which the folder has inside the block. The unfinished files of killed workers
    are removed at the end. Raises UserError, naming host, process and time, if another driver owns
    the folder, or if it cannot be written; OutputLost if the claim was lost meanwhile.

    Example::

        with output_lock(Folder("out/demo")):
            ...
    """
    pace = _Pace.of(folder, beat_seconds)
    mine: Claim = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": _processes(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": "",
    }
    try:
        _enter(folder, mine, pace)
        folder.fence = folder.path(layout.claim_key(mine["token"]))
        _end_previous(folder)
        claim = mine | progress() | {"beats": 0}
        folder.write(layout.CLAIM, json.dumps(claim))
    except BaseException as error:
        _leave(folder, mine)
        if isinstance(error, OSError):
            raise UserError(f"output {folder} cannot be written: {os_reason(error)}") from None
        raise UserError(f"output {error}") if isinstance(error, StorageError) else error from None
    ended = threading.Event()
    arguments = (folder, claim, progress, ended, pace)
    beat = threading.Thread(target=_renew, args=arguments, daemon=True)
    beat.start()
    try:
        yield folder.fence
    finally:
        ended.set()
        beat.join()
        try:
            with suppress(StorageError):  # a remaining claim is dead, as no process renews it
                folder.clear_temporary()
                folder.without_retries.delete(layout.CLAIM)
        finally:
            _leave(folder, mine)


class _Pace(NamedTuple):
    """The interval of an owner's heartbeats, and how often others look for one."""

    beat: float  # seconds
    look: float  # seconds
    looks: int

    @classmethod
    def of(cls, folder: Folder, beat_seconds: float | None) -> "_Pace":
        seconds = BEAT_SECONDS if beat_seconds is None else beat_seconds
        each = seconds / _ON_A_DISK if folder.local else seconds
        return cls(each, each / 2, round(2 * _BEATS_OF_PATIENCE * seconds / each))


def _processes() -> str | None:
    """Returns the boot and the PID namespace, in which process ids are unique; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _leave(folder: Folder, mine: Claim) -> None:
    """Releases the folder; a key that cannot be deleted belongs to no active claim."""
    folder.fence = None
    _active.discard(mine["token"])
    with suppress(StorageError, OSError):
        folder.without_retries.delete(layout.claim_key(mine["token"]))


def _enter(folder: Folder, mine: Claim, pace: _Pace) -> None:
    """Writes the key, and returns once this driver owns the folder.

    ``mine`` gets a new token for each try. Raises UserError if another driver is alive there.
    """
    dead: set[str] = set()  # tokens of claims without heartbeats
    while True:
        _bury(folder, _claims(folder), dead, pace)
        mine["token"] = uuid.uuid4().hex
        _active.add(mine["token"])
        _write_key(folder, mine)
        while mine["token"] in (claims := _claims(folder)):
            others = {t: one for t, one in claims.items() if t != mine["token"] and t not in dead}
            if not others:
                return
            owner = _read(folder, layout.CLAIM)
            if min(others) < mine["token"] or (owner is not None and owner["token"] in others):
                break  # the others go first
            _bury(folder, others, dead, pace, withdrawing=True)
        _leave(folder, mine)


def _write_key(folder: Folder, mine: Claim) -> None:
    for left in reversed(range(_TRIES)):
        try:
            return folder.write(layout.claim_key(mine["token"]), json.dumps(mine))
        except FileNotFoundError:
            if not left:
                raise


def _end_previous(folder: Folder) -> None:
    """Ends the invocation of a previous owner that did not release the folder."""
    if (before := _read(folder, layout.CLAIM)) is not None:
        folder.clear_temporary()  # its unfinished files cannot be published any more
        history.end_killed(folder, before)


def _bury(
    folder: Folder,
    claims: dict[str, Claim],
    dead: set[str],
    pace: _Pace,
    withdrawing: bool = False,
) -> None:
    """Waits until all of these claims are gone or dead, and deletes the keys of dead ones.

    Raises UserError if one is alive, or just returns if they are ``withdrawing``.
    """
    left = {token: claim for token, claim in claims.items() if token not in dead}
    while left:
        alive, silent = _watch(folder, left, pace)
        for token in silent:
            if layout.token_of(key := layout.claim_key(token)):
                folder.delete(key)
            dead.add(token)
        if alive is not None:
            if withdrawing:
                return
            raise _in_use(folder, alive)
        left = {} if withdrawing else {t: c for t, c in _claims(folder).items() if t not in dead}


def _watch(folder: Folder, first: dict[str, Claim], pace: _Pace) -> tuple[Claim | None, list[str]]:
    """Returns a claim that is alive, if any, and the tokens of dead ones.

    It takes several heartbeat intervals to see that a claim is dead. A deleted claim is neither.
    """
    if working := _active & first.keys():
        return first[working.pop()], []
    dead = [token for token, claim in first.items() if _is_surely_dead(claim)]
    left = first.keys() - dead
    for _ in range(pace.looks):
        if not left:
            break
        time.sleep(pace.look)
        now = _claims(folder)
        left &= now.keys()
        for token in left:
            if now[token] != first[token]:
                return now[token], dead
    return None, [*dead, *left]


def _is_surely_dead(claim: Claim) -> bool:
    """Returns True if the process is gone; only known within its boot and PID namespace."""
    here, pid = _processes(), claim["pid"]
    if here is None or claim.get("processes") != here or type(pid) is not int or pid <= 0:
        return False
    if pid == os.getpid():
        return claim["token"] not in _active
    try:
        os.kill(pid, 0)  # tests for existence, and sends no signal
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _claims(folder: Folder) -> dict[str, Claim]:
    """Returns every claim by its token: that of ``claim.json``, and those with a key."""
    claims: dict[str, Claim] = {}
    for name in folder.top_names():
        if (token := layout.token_of(name)) is not None:
            claims[token] = (_read(folder, name) or _UNREADABLE) | {"token": token}
    renewed = _read(folder, layout.CLAIM)
    return claims if renewed is None else claims | {renewed["token"]: renewed}


_UNREADABLE: Claim = {"host": "?", "pid": "?", "since": "?"}


def _read(folder: Folder, name: str) -> Claim | None:
    """Returns the claim in a file; None if the file is missing or damaged."""
    try:
        claim = shapes.check_shape(shapes.parse_json(folder.get(name) or b"{}"), shapes.ClaimFile)
    except ValueError:
        return None
    return claim | {"token": str(claim.get("token"))}


def _in_use(folder: Folder, claim: Claim) -> UserError:
    who = f"process {one_line(claim['pid'])} on {one_line(claim['host'])}"
    return UserError(
        f"output {folder} is in use: {who} has worked there since {one_line(claim['since'])}. Fix: "
        "wait for it, stop it, or give another output"
    )


def _renew(
    folder: Folder,
    claim: Claim,
    progress: Callable[[], dict[str, Any]],
    ended: threading.Event,
    pace: _Pace,
) -> None:
    """Renews the claim until the block ends; ends a job at once if it has lost the folder."""
    while not ended.wait(pace.beat):
        claim |= progress() | {"beats": claim["beats"] + 1}
        try:
            folder.without_retries.write(layout.CLAIM, json.dumps(claim))
        except (OSError, StorageError):
            continue  # a short outage of the storage; the next heartbeat tries again
        except OutputLost as lost:
            if shutdown.is_job():
                shutdown.exit_now(f"error: {lost}", shutdown.exit_code(lost))
            return  # the next write raises it again


def lock_holder(folder: Folder) -> Claim | None:
    """Returns the claim on the folder; None if there is none, or its process is surely dead.

    It may be the claim of a killed driver: to find out would take half a minute.
    """
    claim = _read(folder, layout.CLAIM)
    return None if claim is None or _is_surely_dead(claim) else claim


def check_free(
    folder: Folder, beat_seconds: float | None = None, dead: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Raises UserError if a living driver owns the folder; does not lock it.

    Returns the tokens of dead claims. ``dead``: the result of an earlier call.
    """
    claims = {token: one for token, one in _claims(folder).items() if token not in dead}
    alive, silent = _watch(folder, claims, _Pace.of(folder, beat_seconds))
    if alive is not None:
        raise _in_use(folder, alive)
    return dead | set(silent)
