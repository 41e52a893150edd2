"""A small process that outlives its parent: it ends what Ray leaves behind of a killed driver.

Run as a script with the parent's process id and those of children that are none of its business.
The parent holds its standard input, and may write there, once, which processes it is about.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable

import psutil

_LOOK_SECONDS = 5.0  # between looks at what these processes have started meanwhile
_FIRST_LOOKS_SECONDS = 0.3  # the same, until the parent has said which they are
_GRACE_SECONDS = 2.0  # in which most of Ray's processes see by themselves that they are alone


def start_reaper() -> "subprocess.Popen[bytes]":
    """Starts a guardian of all that this process starts from now on."""
    before = [child.pid for child in psutil.Process().children()]
    # -P: ray.py beside it is not Ray
    command = [sys.executable, "-P", __file__, *map(str, [os.getpid(), *before])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def watch_only(guardian: "subprocess.Popen[bytes]", pids: Iterable[int]) -> None:
    """From now on the guardian is about these processes and what they start."""
    assert guardian.stdin is not None  # raises OSError where the guardian is gone
    guardian.stdin.write(" ".join(map(str, pids)).encode() + b"\n")
    guardian.stdin.flush()


def process_family(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """These processes and their descendants, as far as they are alive."""
    found: set[psutil.Process] = set()
    for process in processes:
        try:
            found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def end_processes(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """Waits for processes to end, and kills those that do not."""
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        try:
            process.kill()
        except psutil.Error:
            continue


def main(parent: int, besides: Collection[int]) -> None:
    """Waits for the parent's end, which closes standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what ends a whole group ends the parent too
    known: set[psutil.Process] = set()
    said = ""
    while True:
        if not said:
            known |= process_family(_children(parent, {*besides, os.getpid()}))
        known = {process for process in known | process_family(known) if process.is_running()}
        if select.select([sys.stdin], [], [], _LOOK_SECONDS if said else _FIRST_LOOKS_SECONDS)[0]:
            if not (said := sys.stdin.readline()):
                break
            known = process_family(
                psutil.Process(int(p)) for p in said.split() if psutil.pid_exists(int(p))
            )
    end_processes(known | process_family(known), _GRACE_SECONDS)


def _children(parent: int, besides: Collection[int]) -> list[psutil.Process]:
    try:
        found = psutil.Process(parent).children()
    except psutil.Error:
        return []
    return [child for child in found if child.pid not in besides]


if __name__ == "__main__":
    pid, *others = map(int, sys.argv[1:])
    main(pid, others)
