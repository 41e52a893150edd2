"""What stands beside a benchmark's results, so that they can be read and measured again."""

import os
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from tgate_batch.output import history

_COMPARED = ("tgate", "pytorch-fid", "pillow", "numpy")  # beside those of every run


def record(what: str, results: dict[str, Any]) -> dict[str, Any]:
    """The results with what they say, the command, the date, the machine and the versions."""
    software = history.software()
    return {
        "what": what,
        "command": shlex.join(["python", "jobs/bench.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": {**software["versions"], **_versions()},
        "git": software["git"],
        "results": results,
    }


def hardware() -> dict[str, Any]:
    """The processor's name, cores that this process may use, memory in GiB, GPU's name or None."""
    import torch

    return {
        "cpu": history.processor(),
        "cores": _cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _versions() -> dict[str, str]:
    found = {}
    for package in _COMPARED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
