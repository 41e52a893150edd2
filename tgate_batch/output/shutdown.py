"""How a process leaves: signals become one exception, exceptions become exit codes."""

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
_GRACE_SECONDS = 20.0  # for leaving in good order

_stopped_by: signal.Signals | None = None
_is_job = False
_last_word = threading.Lock()


def install_signal_handlers() -> None:
    """From here on SIGTERM and Ctrl-C raise KeyboardInterrupt once; then the process is leaving.

    It leaves even where Python's main thread is held by a library.
    """
    global _is_job
    _is_job = True
    watch([signal.SIGTERM, signal.SIGINT], _leave_at_last, _stop)


def is_job() -> bool:
    """Whether this process is a job of ours, and not somebody's notebook."""
    return _is_job


def is_shutting_down() -> bool:
    """Whether a signal has told this job to leave."""
    return _stopped_by is not None


def watch(
    signals: Iterable[int],
    told: Callable[[int], None],
    handler: Callable[[int, FrameType | None], None] = lambda number, frame: None,
) -> None:
    """Calls ``told`` with a signal's number in a thread of its own, at once, whatever the main
    thread does; ``handler`` runs in the main thread as soon as Python does.

    To be called in the main thread.
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
                told(byte[0])

    threading.Thread(target=listening, name="goodbye", daemon=True).start()


def exit_code(error: BaseException) -> int:
    """What a job exits with that ends by this."""
    if isinstance(error, UserError):
        return UNUSABLE
    if isinstance(error, ClusterLost | NoRoom | OutputLost | StorageError):
        return MISSING
    if isinstance(error, KeyboardInterrupt):
        return 128 + _signal()
    return 1


def stop_message() -> str:
    """The line about the signal that ends this process."""
    by = "" if _signal() == signal.SIGINT else f" by {_signal().name}"
    return f"stopped{by}; the same command goes on with the missing shards"


def exit_now(line: str, code: int) -> None:
    """Ends the process here, whatever its other threads do. Prints the line on stderr.

    Of several threads that call it the first one prints.
    """
    _last_word.acquire(timeout=_GRACE_SECONDS)
    print(printable(line), file=console.err(), flush=True)
    console.out().flush()
    console.forget()
    os._exit(code)


def _signal() -> signal.Signals:
    return _stopped_by or signal.SIGINT


def _stop(number: int, frame: FrameType | None) -> None:
    """Later signals do nothing: the process is on its way."""
    global _stopped_by
    if _stopped_by is None:
        _stopped_by = signal.Signals(number)
        raise KeyboardInterrupt


def _leave_at_last(number: int) -> None:
    threading.Event().wait(_GRACE_SECONDS)
    exit_now(stop_message(), 128 + number)
