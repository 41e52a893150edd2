"""A small process that outlives its parent: it ends what Ray leaves behind of a killed driver.

Run as a script with the process ids of a local Ray; the parent holds its standard input.
"""

import select
import signal
import subprocess
import sys
from collections.abc import Iterable

import psutil

_LOOK_SECONDS = 5.0  # between looks at what these processes have started meanwhile
_GRACE_SECONDS = 2.0  # in which most of Ray's processes see by themselves that they are alone


def watched_over(pids: Iterable[int]) -> "subprocess.Popen[bytes]":
    """Starts a guardian of these processes and all that they start."""
    command = [sys.executable, "-P", __file__, *map(str, pids)]  # -P: ray.py beside it is not Ray
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def family(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """These processes and their descendants, as far as they are alive."""
    found: set[psutil.Process] = set()
    for process in processes:
        try:
            found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def end(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """Waits for processes to end, and kills those that do not."""
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        try:
            process.kill()
        except psutil.Error:
            continue


def main(pids: list[int]) -> None:
    """Waits for the parent's end, which closes standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what ends a whole group ends the parent too
    known = family(psutil.Process(pid) for pid in pids if psutil.pid_exists(pid))
    while not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
        known = {process for process in known | family(known) if process.is_running()}
    end(known | family(known), _GRACE_SECONDS)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
