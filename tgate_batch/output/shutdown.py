"""Shutdown of a process: signals become one exception, and exceptions become exit codes."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType

from tgate_batch import console
from tgate_batch.errors import (
    ClusterLost,
    NoRoom,
    OutputLost,
    StorageError,
    UserError,
    printable,
)

UNUSABLE, MISSING = 2, 4
_GRACE_SECONDS = 20.0  # for an orderly shutdown

_stopped_by: signal.Signals | None = None
_is_job = False
_last_line = threading.Lock()


def install_signal_handlers() -> None:
    """Makes SIGTERM and Ctrl-C raise KeyboardInterrupt once; the process then shuts down.

    It exits after ``_GRACE_SECONDS`` even if a library blocks Python's main thread.
    """
    global _is_job
    _is_job = True
    watch([signal.SIGTERM, signal.SIGINT], _leave_at_last, _stop)


def is_job() -> bool:
    """Returns True if this process is a job of ours, not for instance a notebook."""
    return _is_job


def is_shutting_down() -> bool:
    """Returns True if this job has received a shutdown signal."""
    return _stopped_by is not None


def watch(
    signals: Iterable[int],
    notify: Callable[[int], None],
    handler: Callable[[int, FrameType | None], None] = lambda number, frame: None,
) -> None:
    """Calls ``notify(number)`` in a separate thread as soon as a signal arrives.

    ``handler`` runs in the main thread when Python gets to it. Must be called in the main thread.
    """
    numbers = frozenset(signals)
    here, there = os.pipe()
    os.set_blocking(there, False)
    signal.set_wakeup_fd(there, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, handler)

    def listening() -> None:
        while byte := os.read(here, 1):
            if byte[0] in numbers:
                notify(byte[0])

    threading.Thread(target=listening, name="signals", daemon=True).start()


def exit_code(error: BaseException) -> int:
    """Returns the exit code of a job that ends with this exception."""
    if isinstance(error, UserError):
        return UNUSABLE
    if isinstance(error, ClusterLost | NoRoom | OutputLost | StorageError):
        return MISSING
    if isinstance(error, KeyboardInterrupt):
        return 128 + _signal()
    return 1


def stop_message() -> str:
    """Returns the line about the signal that ends this process."""
    by = "" if _signal() == signal.SIGINT else f" by {_signal().name}"
    return f"stopped{by}; rerun the same command to continue with the missing shards"


def exit_now(line: str, code: int) -> None:
    """Prints the line on stderr and ends the process at once, regardless of its other threads.

    If several threads call it, only the first one prints.
    """
    _last_line.acquire(timeout=_GRACE_SECONDS)
    print(printable(line), file=console.err(), flush=True)
    console.out().flush()
    console.forget()
    os._exit(code)


def _signal() -> signal.Signals:
    return _stopped_by or signal.SIGINT


def _stop(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt for the first signal; later ones do nothing."""
    global _stopped_by
    if _stopped_by is None:
        _stopped_by = signal.Signals(number)
        raise KeyboardInterrupt


def _leave_at_last(number: int) -> None:
    threading.Event().wait(_GRACE_SECONDS)
    exit_now(stop_message(), 128 + number)
