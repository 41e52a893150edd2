"""Who made what, when and with what: one line an invocation in ``history.jsonl``."""

import json
import platform
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.output import layout
from tgate_batch.storage import Folder, without_credentials

_PACKAGES = (
    "tgate-batch",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "DeepCache",
    "ray",
    "pyarrow",
)


@cache
def software() -> dict[str, Any]:
    """The versions of this process: ``{"versions": {...}, "git": commit or None}``."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "git": _git_commit()}


@contextmanager
def recorded(folder: Folder) -> Iterator[dict[str, Any]]:
    """Adds a line when the block ends, also by an exception. The block may add to the entry."""
    entry: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [without_credentials(word) for word in sys.argv],
        **software(),
        "host": socket.gethostname(),
        "device": None,
        "exit_code": 1,
    }
    start = time.monotonic()
    try:
        yield entry
    except UserError:
        entry["exit_code"] = 2
        raise
    except KeyboardInterrupt:
        entry["exit_code"] = 130
        raise
    finally:
        entry["seconds"] = round(time.monotonic() - start, 3)
        folder.append(layout.HISTORY, json.dumps(entry))


def read(folder: Folder) -> list[dict[str, Any]]:
    """The entries, oldest first."""
    if not folder.exists(layout.HISTORY):
        return []
    return [json.loads(line) for line in folder.read(layout.HISTORY).splitlines() if line.strip()]


def added_up(makers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
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
