"""Keeps folders that may be a stranger's, like an output, off Python's import path."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import tgate_batch


def without_folders(folders: Iterable[str], path: Iterable[str]) -> list[str]:
    """Returns an import path without these folders; this package's own folder moves to its end."""
    ours = os.path.realpath(Path(tgate_batch.__file__).parents[1])
    left_out = {os.path.realpath(folder) for folder in folders}
    others = [entry for entry in path if os.path.realpath(entry) not in left_out]
    return [*others, ours] if ours in left_out else others


def leave_out(*folders: str) -> None:
    """Removes these folders from this process's import path."""
    sys.path[:] = without_folders(folders, sys.path)
