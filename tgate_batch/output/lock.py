"""One driver at a time owns an output folder: ``claim-<token>.json`` and ``claim.json``.

A driver claims the folder by a file of a name that no other driver uses, its key. It owns the
folder once a listing that began after this shows no other key. Of two drivers the one that wrote
its key later sees the key of the other one, so never do two own the folder. This takes no more of
a storage than that a listing shows what was written before: no hard links, no conditional writes.

The owner renews ``claim.json`` all the time: each beat is a sign of life, and also carries the
run's progress, so that the record survives a kill. A claim that stands still for some beats is
dead, and whoever comes next deletes its key. No clocks, boot times or host names are compared. Only
where a process number means the same to both drivers (the same boot and the same PID namespace) is
a process that does not exist taken for dead at once.

Whoever loses the key has lost the folder: it is the fence of the owner's ``Folder`` and of the
copies that workers have, so nothing is published any more (``tgate_batch/storage/folder.py``).
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

from tgate_batch.errors import OutputLost, StorageError, UserError, one_line
from tgate_batch.output import history, layout, shapes, shutdown
from tgate_batch.storage import Folder

BEAT_SECONDS = 10.0
_BEATS_OF_PATIENCE = 3
_ON_A_DISK = 5  # times as often, where a beat costs next to nothing
_TRIES = 5  # to write a key: whoever owned the folder may clear the unfinished file away

Claim = dict[str, Any]

_held: set[str] = set()  # tokens of this process's own claims, as long as it works under them


@contextmanager
def output_lock(
    folder: Folder,
    says: Callable[[], dict[str, Any]] = dict,
    beat_seconds: float | None = None,
) -> Iterator[str]:
    """Owns the folder for the length of the block; each beat carries what ``says`` returns then.

    Yields the fence, which the folder has within the block. What killed workers left under
    temporary names is gone when the block ends. Raises UserError, naming host, process and time,
    where another driver owns it, and where the folder cannot be written; OutputLost where the claim
    was lost meanwhile.
    """
    pace = _Pace.of(folder, beat_seconds)
    mine = _mine()
    try:
        _enter(folder, mine, pace)
        folder.fence = folder.path(layout.claim_key(mine["token"]))
        _succeed(folder)
        claim = mine | says() | {"beats": 0}
        folder.write(layout.CLAIM, json.dumps(claim))
    except BaseException as error:
        _leave(folder, mine)
        raise _as_user_error(folder, error) from None
    ended = threading.Event()
    beat = threading.Thread(target=_renew, args=(folder, claim, says, ended, pace), daemon=True)
    beat.start()
    try:
        yield folder.fence
    finally:
        ended.set()
        beat.join()
        try:
            with suppress(StorageError):  # a claim that stays has a dead holder
                folder.clear_temporary()
                folder.without_retries.delete(layout.CLAIM)
        finally:
            _leave(folder, mine)


class _Pace(NamedTuple):
    """How often an owner beats, and how often others look until a claim stands still."""

    beat: float  # seconds
    look: float  # seconds
    looks: int

    @classmethod
    def of(cls, folder: Folder, beat_seconds: float | None) -> "_Pace":
        seconds = BEAT_SECONDS if beat_seconds is None else beat_seconds
        each = seconds / _ON_A_DISK if folder.local else seconds
        return cls(each, each / 2, round(2 * _BEATS_OF_PATIENCE * seconds / each))


def _mine() -> Claim:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": _processes(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": "",
    }


def _processes() -> str | None:
    """Where process numbers mean the same: the boot and the PID namespace; None: not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _as_user_error(folder: Folder, error: BaseException) -> BaseException:
    if isinstance(error, OSError):
        reason = error.strerror or one_line(error)
        return UserError(f"output {folder} cannot be written: {reason}")
    return UserError(f"output {error}") if isinstance(error, StorageError) else error


def _leave(folder: Folder, mine: Claim) -> None:
    """Gives the folder back; of a key that stays the holder is dead."""
    folder.fence = None
    _held.discard(mine["token"])
    with suppress(StorageError, OSError):
        folder.without_retries.delete(layout.claim_key(mine["token"]))


def _enter(folder: Folder, mine: Claim, pace: _Pace) -> None:
    """Writes the key and returns once the folder is this driver's alone.

    ``mine`` gets its token, a fresh one for each try. Raises UserError where another driver is
    alive there.
    """
    dead: set[str] = set()  # tokens of claims that stood still
    while True:
        _bury(folder, _claims(folder), dead, pace)
        mine["token"] = uuid.uuid4().hex
        _held.add(mine["token"])
        _write_key(folder, mine)
        while mine["token"] in (claims := _claims(folder)):
            others = {t: one for t, one in claims.items() if t != mine["token"] and t not in dead}
            if not others:
                return
            if min(others) < mine["token"] or _owner(folder) in others:
                break  # they go first
            _bury(folder, others, dead, pace, withdrawing=True)
        _leave(folder, mine)


def _write_key(folder: Folder, mine: Claim) -> None:
    for left in reversed(range(_TRIES)):
        try:
            return folder.write(layout.claim_key(mine["token"]), json.dumps(mine))
        except FileNotFoundError:
            if not left:
                raise


def _succeed(folder: Folder) -> None:
    """Ends the invocation of whoever owned the folder and did not give it back."""
    if (before := _read(folder, layout.CLAIM)) is not None:
        folder.clear_temporary()  # what it is writing cannot be published any more
        history.end_killed(folder, before)


def _bury(
    folder: Folder,
    claims: dict[str, Claim],
    dead: set[str],
    pace: _Pace,
    withdrawing: bool = False,
) -> None:
    """Returns when all of these claims are gone or dead; the keys of dead ones are deleted.

    Raises UserError where one is alive. Where they are ``withdrawing``, it returns instead.
    """
    left = {token: claim for token, claim in claims.items() if token not in dead}
    while left:
        alive, still = _watched(folder, left, pace)
        for token in still:
            if layout.token_of(key := layout.claim_key(token)):
                folder.delete(key)
            dead.add(token)
        if alive is not None:
            if withdrawing:
                return
            raise _in_use(folder, alive)
        left = {} if withdrawing else {t: c for t, c in _claims(folder).items() if t not in dead}


def _watched(
    folder: Folder, first: dict[str, Claim], pace: _Pace
) -> tuple[Claim | None, list[str]]:
    """A claim that shows a sign of life, if any, and the tokens of those that are dead.

    It takes some beats to see that a claim stands still. One that is gone is neither.
    """
    if working := _held & first.keys():
        return first[working.pop()], []
    still = [token for token, claim in first.items() if _is_surely_dead(claim)]
    left = first.keys() - still
    for _ in range(pace.looks):
        if not left:
            break
        time.sleep(pace.look)
        now = _claims(folder)
        left &= now.keys()
        for token in left:
            if now[token] != first[token]:
                return now[token], still
    return None, [*still, *left]


def _is_surely_dead(claim: Claim) -> bool:
    """Whether the process is gone, which only its own boot and PID namespace can tell."""
    here, pid = _processes(), claim["pid"]
    if here is None or claim.get("processes") != here or type(pid) is not int or pid <= 0:
        return False
    if pid == os.getpid():
        return claim["token"] not in _held
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _claims(folder: Folder) -> dict[str, Claim]:
    """Every claim by its token: that of ``claim.json``, and each that has a key."""
    found: dict[str, Claim] = {}
    for name in folder.top_names():
        if (token := layout.token_of(name)) is not None:
            found[token] = (_read(folder, name) or _NOBODY) | {"token": token}
    beating = _read(folder, layout.CLAIM)
    return found if beating is None else found | {beating["token"]: beating}


_NOBODY: Claim = {"host": "?", "pid": "?", "since": "?"}  # in a key that cannot be read


def _owner(folder: Folder) -> str | None:
    """The token of whoever renews ``claim.json``."""
    claim = _read(folder, layout.CLAIM)
    return None if claim is None else claim["token"]


def _read(folder: Folder, name: str) -> Claim | None:
    """A claim as its file has it; None where there is none, or it is damaged."""
    try:
        claim = shapes.check_shape(shapes.parse_json(folder.get(name) or b"{}"), shapes.ClaimFile)
    except ValueError:
        return None
    return claim | {"token": str(claim.get("token"))}


def _in_use(folder: Folder, claim: Claim) -> UserError:
    who = f"process {one_line(claim['pid'])} on {one_line(claim['host'])}"
    return UserError(
        f"output {folder} is in use: {who} has worked there since {one_line(claim['since'])}; "
        "wait for it, stop it, or give another output"
    )


def _renew(
    folder: Folder,
    claim: Claim,
    says: Callable[[], dict[str, Any]],
    ended: threading.Event,
    pace: _Pace,
) -> None:
    """Beats until the block ends. A job that has lost the folder is ended here, at once."""
    while not ended.wait(pace.beat):
        claim |= says() | {"beats": claim["beats"] + 1}
        try:
            folder.without_retries.write(layout.CLAIM, json.dumps(claim))
        except (OSError, StorageError):
            continue  # a storage that is away for a moment; the next beat tries again
        except OutputLost as lost:
            if shutdown.is_job():
                shutdown.exit_now(f"error: {lost}", shutdown.exit_code(lost))
            return  # the next write says it


def lock_holder(folder: Folder) -> Claim | None:
    """Who has the folder claimed; None where nobody has, or the process is surely dead.

    Whether another one is alive would take half a minute to tell.
    """
    claim = _read(folder, layout.CLAIM)
    return None if claim is None or _is_surely_dead(claim) else claim


def check_free(
    folder: Folder, beat_seconds: float | None = None, dead: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Raises UserError if a living driver owns the folder; claims nothing.

    Returns the tokens of dead claims. ``dead``: those that an earlier call returned.
    """
    claims = {token: one for token, one in _claims(folder).items() if token not in dead}
    alive, still = _watched(folder, claims, _Pace.of(folder, beat_seconds))
    if alive is not None:
        raise _in_use(folder, alive)
    return dead | set(still)
