"""Where Python looks for modules while an output is read: never in the output itself."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import tgate_batch


def without_folders(folders: Iterable[str], path: Iterable[str]) -> list[str]:
    """An import path without these folders; that of this package stays, as the last one."""
    ours = os.path.realpath(Path(tgate_batch.__file__).parents[1])
    left_out = {os.path.realpath(folder) for folder in folders}
    kept = [entry for entry in path if os.path.realpath(entry) not in left_out]
    return [*kept, ours] if ours in left_out else kept


def leave_out(*folders: str) -> None:
    """From here on this process imports nothing from these folders."""
    sys.path[:] = without_folders(folders, sys.path)
