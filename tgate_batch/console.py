"""Console output of a command: text lines, or JSON lines for log collectors.

Each message is written once, as one complete line, as soon as it applies. In a terminal, long lines
wrap between words. Inside ``alone`` the output of libraries goes to a log file.
"""

import json
import os
import shutil
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tgate_batch.errors import ClusterLost, NoRoom, StorageError, UserError, printable

_lock = threading.Lock()
_streams: tuple[Any, Any] | None = None  # ours, if they differ from Python's
_log: TextIO | None = None  # of libraries, inside `alone`
_as_json = False
_apart = False


def as_json(yes: bool = True) -> None:
    """Writes every line as one JSON object, to stdout or, inside ``apart``, to stderr."""
    global _as_json
    _as_json = yes


def is_json() -> bool:
    return _as_json


@contextmanager
def apart() -> Iterator[None]:
    """Sends every line to stderr inside the block; stdout carries only the results."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def out() -> Any:
    """Returns the stream of our lines."""
    return sys.stdout if _streams is None else _streams[0]


def err() -> Any:
    """Returns the stream of our warnings and errors."""
    return sys.stderr if _streams is None else _streams[1]


@contextmanager
def to(out: Any, err: Any) -> Iterator[None]:
    """Sends our lines to these streams inside the block."""
    global _streams
    before, _streams = _streams, (out, err)
    try:
        yield
    finally:
        _streams = before


def is_alone() -> bool:
    """Returns True if the output of libraries goes to a log file."""
    return _log is not None


@contextmanager
def alone() -> Iterator[None]:
    """Redirects the output of libraries to a log file inside the block; ours stays as it is.

    This includes output of C code and of processes that the block starts. The file is removed at
    the end, unless an unexpected error ends the block: then its path is printed before the
    traceback.
    """
    global _log
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    with ExitStack() as stack:
        ours = [_duplicate(stream, number) for stream, number in zip(streams, (1, 2), strict=True)]
        _log = log = _new_log()
        for number in (1, 2):
            with suppress(OSError):  # it is closed
                stack.callback(_restore, number, os.dup(number))
                os.dup2(log.fileno(), number)
        stack.enter_context(to(*ours))
        for stream in ours:
            stack.callback(stream.flush)
        sys.stdout = sys.stderr = log
        try:
            yield
        except (SystemExit, KeyboardInterrupt, UserError, StorageError, ClusterLost, NoRoom):
            forget()
            raise
        except BaseException:
            log.flush()
            if os.path.getsize(log.name):
                print(f"lines of other libraries: {log.name}", file=err(), flush=True)
            raise
        else:
            forget()
        finally:
            # The log stays open: a handler that was created inside may write to it later.
            sys.stdout, sys.stderr = streams
            _log = None


def forget() -> None:
    """Removes the log file of libraries, if there is one."""
    if _log is not None and _log.name != os.devnull:
        Path(_log.name).unlink(missing_ok=True)


def _new_log() -> TextIO:
    options: Any = {"mode": "w", "buffering": 1, "encoding": "utf-8", "errors": "replace"}
    try:
        number, name = tempfile.mkstemp(prefix="tgate-batch-", suffix=".log")
    except OSError:  # there is no folder for temporary files
        return open(os.devnull, **options)
    os.close(number)
    return open(name, **options)


def _duplicate(stream: Any, number: int) -> Any:
    """Returns a stream with the same target, which stays valid if descriptor ``number`` changes."""
    try:
        if stream.fileno() != number:
            return stream
        return open(os.dup(number), "w", 1, stream.encoding, stream.errors)
    except (OSError, ValueError, AttributeError):  # it has no descriptor
        return stream


def _restore(number: int, before: int) -> None:
    """Points a descriptor back to its earlier target."""
    os.dup2(before, number)
    os.close(before)


def info(text: str, event: str = "info", **facts: Any) -> None:
    """Logs progress; ``facts`` become further keys of the JSON line."""
    _write(text, event, facts, out())


def warning(text: str, **facts: Any) -> None:
    """Logs a warning: a problem that does not stop the command."""
    _write(f"warning: {text}", "warning", facts, err())


def error(text: str, **facts: Any) -> None:
    """Logs an error: why a command stops, or finishes only partly."""
    _write(f"error: {text}", "error", facts, err())


def _write(text: str, event: str, facts: dict[str, Any], stream: Any) -> None:
    with _lock:
        stream = err() if _apart else stream
        if not _as_json:
            print(_wrapped(printable(text), stream), file=stream, flush=True)
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = text.removeprefix(f"{event}: ")
        line = json.dumps({"at": at, "event": event, "text": text, **facts})
        print(line, file=err() if _apart else out(), flush=True)


def _wrapped(text: str, stream: Any) -> str:
    """Returns the text in lines that fit the terminal, if it goes to one; no word is broken."""
    if not stream.isatty() or len(text) <= (columns := width(stream)):
        return text
    return textwrap.fill(
        text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def width(stream: Any) -> int:
    """Returns the number of columns of the terminal that a stream goes to."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return int(os.environ.get("COLUMNS") or 0) or columns or shutil.get_terminal_size().columns
