"""What a command tells whoever runs it: lines for people, or JSON lines for those who collect logs.

In either form a line is said once, whole, at the moment it is true. In a terminal it breaks between
words.
"""

import json
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tgate_batch.errors import printable

_lock = threading.Lock()
_as_json = False
_apart = False


def as_json(yes: bool = True) -> None:
    """From here on every line is one JSON object, on standard output unless it is ``apart``."""
    global _as_json
    _as_json = yes


def is_json() -> bool:
    return _as_json


@contextmanager
def apart() -> Iterator[None]:
    """Meanwhile every line goes to standard error: standard output is for the results alone."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def info(text: str, event: str = "info", **facts: Any) -> None:
    """A line of what goes on; ``facts`` are figures in it, for those who read the JSON."""
    _say(text, event, facts, sys.stdout)


def warning(text: str, **facts: Any) -> None:
    """Something is not as it should be, and the command goes on."""
    _say(f"warning: {text}", "warning", facts, sys.stderr)


def error(text: str, **facts: Any) -> None:
    """Why a command ends, or ends without a part of what it was asked for."""
    _say(f"error: {text}", "error", facts, sys.stderr)


def _say(text: str, event: str, facts: dict[str, Any], stream: Any) -> None:
    with _lock:
        stream = sys.stderr if _apart else stream
        if not _as_json:
            print(_fitted(printable(text), stream), file=stream, flush=True)
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = text.removeprefix(f"{event}: ")
        line = json.dumps({"at": at, "event": event, "text": text, **facts})
        print(line, file=sys.stderr if _apart else sys.stdout, flush=True)


def _fitted(text: str, stream: Any) -> str:
    """The text in lines that fit the terminal, if it goes to one; a word is never broken."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    if len(text) <= width:
        return text
    return textwrap.fill(
        text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
