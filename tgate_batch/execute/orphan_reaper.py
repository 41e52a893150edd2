"""A small process that outlives its parent, and ends what Ray leaves behind of a killed driver.

Run as a script with the parent's process id and those of children to ignore. The parent keeps its
standard input open, and may write one line with the ids of the processes to watch.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable

import psutil

_LOOK_SECONDS = 5.0  # between looks for new processes of the watched ones
_FIRST_LOOKS_SECONDS = 0.3  # the same, until the parent has written which to watch
_GRACE_SECONDS = 2.0  # in which most of Ray's processes end by themselves


def start_reaper() -> "subprocess.Popen[bytes]":
    """Starts a reaper of all processes that this one starts from now on."""
    before = [child.pid for child in psutil.Process().children()]
    # -P: ray.py in this folder is not Ray
    command = [sys.executable, "-P", __file__, *map(str, [os.getpid(), *before])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def watch_only(reaper: "subprocess.Popen[bytes]", pids: Iterable[int]) -> None:
    """Limits the reaper to these processes and what they start; raises OSError if it is gone."""
    assert reaper.stdin is not None
    reaper.stdin.write(" ".join(map(str, pids)).encode() + b"\n")
    reaper.stdin.flush()


def process_family(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Returns these processes and their descendants, as far as they are alive."""
    family: set[psutil.Process] = set()
    for process in processes:
        try:
            family |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return family


def end_processes(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """Waits for processes to end, and kills those that do not."""
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        try:
            process.kill()
        except psutil.Error:
            continue


def main(parent: int, ignored: Collection[int]) -> None:
    """Waits for the end of the parent, which closes standard input; then ends the processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a signal to the group ends the parent too
    watched: set[psutil.Process] = set()
    line = ""
    while True:
        if not line:
            watched |= process_family(_children(parent, {*ignored, os.getpid()}))
        watched = {one for one in watched | process_family(watched) if one.is_running()}
        if select.select([sys.stdin], [], [], _LOOK_SECONDS if line else _FIRST_LOOKS_SECONDS)[0]:
            if not (line := sys.stdin.readline()):
                break
            watched = process_family(
                psutil.Process(int(p)) for p in line.split() if psutil.pid_exists(int(p))
            )
    end_processes(watched | process_family(watched), _GRACE_SECONDS)


def _children(parent: int, ignored: Collection[int]) -> list[psutil.Process]:
    try:
        children = psutil.Process(parent).children()
    except psutil.Error:
        return []
    return [child for child in children if child.pid not in ignored]


if __name__ == "__main__":
    pid, *others = map(int, sys.argv[1:])
    main(pid, others)
