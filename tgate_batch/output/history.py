"""Who made what, when and with what: two lines an invocation in ``history.jsonl``.

The first is written at its start, the second at its end. A killed invocation writes no second one.
Its claim says how long it lived, and whoever takes over that claim writes the line in its place.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from tgate_batch import __version__
from tgate_batch.config import Workers
from tgate_batch.errors import OutputLost, StorageError
from tgate_batch.output import layout, seal, shapes, shutdown
from tgate_batch.storage import Folder, without_credentials

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "DeepCache",
    "ray",
    "pyarrow",
)

CPU = "CPU"  # the device's name where there is no GPU

# Whether an invocation's time counts from the birth of its process, as a job's does, or from where
# it begins, as in a notebook.
whole_process = False


@cache
def software() -> dict[str, Any]:
    """The versions of this process: ``{"versions": {...}, "git": commit or None}``."""
    versions = {"python": platform.python_version(), "tgate-batch": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "git": _git_commit()}


def environment(device: str) -> dict[str, Any]:
    """Who draws in this process: its software, the device, and what else rounds in its own way.

    On a CPU that is the processor and how many threads torch has of it.
    """
    found = software() | {"device": device}
    if device == CPU:
        import torch

        found |= {"processor": processor(), "threads": torch.get_num_threads()}
    return found


def rounds_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the same work of two makers gives the same bits: all but their commits is equal."""
    return all(
        one.get(key) == other.get(key) for key in ("versions", "device", "processor", "threads")
    )


@cache
def processor() -> str:
    """As Linux names it in ``/proc/cpuinfo``; elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


class Invocation(dict[str, Any]):
    """What the end of an invocation will say.

    ``device``, ``invariant`` (as of a receipt) and ``exit_code`` are the block's to set.
    ``workers`` is the most that it held at one time, ``memory_kills`` how many of them were ended
    for want of memory, if any.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__(id=uuid.uuid4().hex, workers=0, device=None, invariant=None, exit_code=1)
        self.each = {"gpus_each": workers.gpus_each, "cpus_each": workers.cpus_each}
        self._since = 0.0 if whole_process else process_seconds()

    def set_workers(self, workers: int) -> None:
        """Records the present number of workers; the largest is kept."""
        self["workers"] = max(self["workers"], workers)

    def count_memory_kill(self) -> None:
        """Counts a worker that was ended because its machine ran out of memory."""
        self["memory_kills"] = self.get("memory_kills", 0) + 1

    def so_far(self) -> dict[str, Any]:
        """How long it has lived (seconds), since when (seconds of the epoch), with how many."""
        seconds = process_seconds() - self._since
        return {
            "id": self["id"],
            "born": round(time.time() - seconds, 3),
            "seconds": round(seconds, 3),
            "workers": self["workers"],
        }


_running: dict[str, Invocation] = {}  # of this process, by id


@contextmanager
def record_invocation(folder: Folder, invocation: Invocation) -> Iterator[None]:
    """Adds a line when the block begins, and one when it ends, also by an exception."""
    born = invocation.so_far()["born"]
    start = {
        "event": "start",
        "id": invocation["id"],
        "born": born,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(born)),
        "command": [without_credentials(word) for word in sys.argv],
        **software(),
        "host": socket.gethostname(),
        **invocation.each,
    }
    _add(folder, start)
    _running[invocation["id"]] = invocation
    try:
        yield
    except BaseException as error:
        invocation["exit_code"] = shutdown.exit_code(error)
        with suppress(StorageError, OutputLost):  # what is wrong is the error; it is said
            _end(folder.without_retries, invocation)
        raise
    try:
        _end(folder, invocation)
    except StorageError:
        if not invocation["exit_code"]:  # else the same storage ended the run, and that was said
            raise


def _end(folder: Folder, invocation: Invocation) -> None:
    _running.pop(invocation["id"])
    _add(folder, {"event": "end", **invocation, **invocation.so_far(), "killed": False})


def _add(folder: Folder, entry: Mapping[str, Any]) -> None:
    folder.append(layout.HISTORY, json.dumps(seal.with_seal(entry)))


def read(folder: Folder) -> list[dict[str, Any]]:
    """One entry an invocation, oldest first: its lines in one.

    An entry without ``exit_code`` has not ended: it works still, or was killed. Its ``seconds`` and
    ``workers`` are those so far, as the claim has them; it lacks them where no claim is left.
    Entries of older versions have ``seconds`` of their block, and no ``id`` and ``workers``.
    """
    entries: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(_lines(folder)):
        entries.setdefault(line.get("id", number), {}).update(line)
    for name, entry in entries.items():
        if entry.pop("event", "end") == "start":
            running = _running.get(name)
            entry |= _so_far_of(folder, name) if running is None else running.so_far()
    return list(entries.values())


def end_killed(folder: Folder, claim: Mapping[str, Any]) -> None:
    """Adds the end of a killed invocation, as its dead claim has it, unless it has one."""
    if any(e.get("id") == claim.get("id") and "exit_code" not in e for e in read(folder)):
        known = {key: claim.get(key) for key in ("id", "born", "seconds", "workers")}
        gone = {"device": None, "exit_code": None, "killed": True}
        _add(folder, {"event": "end", **known, **gone})


def process_seconds() -> float:
    """How long this process has lived; no clock that is set moves it."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        born = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22: seconds after the boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - born
    except (OSError, AttributeError):  # no Linux
        return time.time() - psutil.Process().create_time()


def _lines(folder: Folder) -> Iterator[dict[str, Any]]:
    """What the file holds, without lines that are torn, or are no entries."""
    for line in (folder.get(layout.HISTORY) or b"").splitlines():
        try:
            entry = shapes.check_shape(shapes.parse_json(line), shapes.HistoryLine)
        except ValueError:
            continue
        entry.pop(seal.KEY, None)
        yield entry


def _so_far_of(folder: Folder, invocation: str) -> dict[str, Any]:
    """``seconds`` and ``workers`` of an invocation that has not ended, if its claim is there."""
    try:
        content = folder.get(layout.CLAIM) or b"{}"
        claim = shapes.check_shape(shapes.parse_json(content), shapes.SoFar)
        if claim["id"] == invocation:
            return {"seconds": claim["seconds"], "workers": claim["workers"]}
    except (ValueError, KeyError):
        pass
    return {}


def merge_makers(makers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those who differ, the one with most files first, each with its ``files`` added up.

    A maker is what a file says of who made it; one without ``files`` counts as one file.
    """
    counts: Counter[str] = Counter()
    for maker in makers:
        about = {key: value for key, value in maker.items() if key != "files"}
        counts[json.dumps(about, sort_keys=True)] += maker.get("files", 1)
    return [{**json.loads(about), "files": files} for about, files in counts.most_common()]


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
