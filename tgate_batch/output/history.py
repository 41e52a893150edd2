"""The history of an output: two lines per invocation of a command in ``history.jsonl``.

The first is written at its start, the second at its end. A killed invocation writes no second line:
the next run to lock the folder writes it, with the duration from the dead lock file.
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

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "DeepCache", "ray", "pyarrow")

CPU = "CPU"  # the device's name without a GPU

# True: an invocation's time begins with its process, as in a job; False: with its block, as in a
# notebook.
whole_process = False


@cache
def software() -> dict[str, Any]:
    """Returns the versions of this process: ``{"versions": {...}, "git": commit or None}``."""
    versions = {"python": platform.python_version(), "tgate-batch": __version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"versions": versions, "git": _git_commit()}


def environment(device: str) -> dict[str, Any]:
    """Returns the maker of this process's images: package versions, device, CPU and threads.

    CPU model and torch's number of threads affect rounding, and are included only on a CPU.
    """
    maker = software() | {"device": device}
    if device == CPU:
        import torch

        maker |= {"processor": processor(), "threads": torch.get_num_threads()}
    return maker


def rounds_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns True if two makers compute the same bits: they may differ only in their commits."""
    return all(
        one.get(key) == other.get(key) for key in ("versions", "device", "processor", "threads")
    )


@cache
def processor() -> str:
    """Returns the CPU's name from ``/proc/cpuinfo``; on other systems, from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class Invocation(dict[str, Any]):
    """The content of an invocation's last line in the history.

    The block sets ``device``, ``invariant`` (of a ShardResult) and ``exit_code``. ``workers`` is
    the largest number of workers at one time, ``memory_kills`` how many of them were killed for
    using too much memory, if any.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__(id=uuid.uuid4().hex, workers=0, device=None, invariant=None, exit_code=1)
        self.each = {"gpus_each": workers.gpus_each, "cpus_each": workers.cpus_each}
        self._since = 0.0 if whole_process else process_seconds()

    def set_workers(self, workers: int) -> None:
        """Records the current number of workers; the largest is kept."""
        self["workers"] = max(self["workers"], workers)

    def count_memory_kill(self) -> None:
        """Counts a worker that was killed because its machine ran out of memory."""
        self["memory_kills"] = self.get("memory_kills", 0) + 1

    def so_far(self) -> dict[str, Any]:
        """Returns its duration (seconds), its start (seconds of the epoch), and its workers."""
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
    """Adds a line to the history when the block begins, and one when it ends or fails."""
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
        with suppress(StorageError, OutputLost):  # the error itself is reported by the caller
            _end(folder.without_retries, invocation)
        raise
    try:
        _end(folder, invocation)
    except StorageError:
        if not invocation["exit_code"]:  # else the storage ended the run, which was reported
            raise


def _end(folder: Folder, invocation: Invocation) -> None:
    _running.pop(invocation["id"])
    _add(folder, {"event": "end", **invocation, **invocation.so_far(), "killed": False})


def _add(folder: Folder, entry: Mapping[str, Any]) -> None:
    folder.append(layout.HISTORY, json.dumps(seal.with_seal(entry)))


def read(folder: Folder) -> list[dict[str, Any]]:
    """Returns one entry per invocation, oldest first, merged from its two lines.

    An entry without ``exit_code`` has not ended: it is running or was killed. Its ``seconds`` and
    ``workers`` are those so far, from the lock file; without a lock file it has none. Entries of
    older versions have the ``seconds`` of their block, and no ``id`` and ``workers``.
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
    """Adds the last line of a killed invocation from its dead lock file, unless it has one."""
    if any(e.get("id") == claim.get("id") and "exit_code" not in e for e in read(folder)):
        known = {key: claim.get(key) for key in ("id", "born", "seconds", "workers")}
        unknown = {"device": None, "exit_code": None, "killed": True}
        _add(folder, {"event": "end", **known, **unknown})


def process_seconds() -> float:
    """Returns the age of this process in seconds, independent of changes of the system clock."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        born = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22: seconds after the boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - born
    except (OSError, AttributeError):  # no Linux
        return time.time() - psutil.Process().create_time()


def _lines(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yields the entries of the file, without incomplete and invalid lines."""
    for line in (folder.get(layout.HISTORY) or b"").splitlines():
        try:
            entry = shapes.check_shape(shapes.parse_json(line), shapes.HistoryLine)
        except ValueError:
            continue
        entry.pop(seal.KEY, None)
        yield entry


def _so_far_of(folder: Folder, invocation: str) -> dict[str, Any]:
    """Returns ``seconds`` and ``workers`` of a running invocation, if it has a lock file."""
    with suppress(ValueError, KeyError):
        content = folder.get(layout.CLAIM) or b"{}"
        claim = shapes.check_shape(shapes.parse_json(content), shapes.SoFar)
        if claim["id"] == invocation:
            return {"seconds": claim["seconds"], "workers": claim["workers"]}
    return {}


def merge_makers(makers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges equal makers (see ``environment``), most files first, and sums their ``files``.

    A maker without ``files`` counts as one file.
    """
    counts: Counter[str] = Counter()
    for maker in makers:
        about = {key: value for key, value in maker.items() if key != "files"}
        counts[json.dumps(about, sort_keys=True)] += maker.get("files", 1)
    return [{**json.loads(about), "files": files} for about, files in counts.most_common()]


def _git_commit() -> str | None:
    command, here = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    try:
        git = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None
