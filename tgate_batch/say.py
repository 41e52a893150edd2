"""What a command tells whoever runs it: lines for people, or JSON lines for those who collect logs.

In either form a line is said once, whole, at the moment it is true.
"""

import json
import sys
import threading
import time
from typing import Any

_lock = threading.Lock()
_as_json = False


def as_json(yes: bool = True) -> None:
    """From here on every line is one JSON object on standard output."""
    global _as_json
    _as_json = yes


def is_json() -> bool:
    return _as_json


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
        if not _as_json:
            print(text, file=stream, flush=True)
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = text.removeprefix(f"{event}: ")
        print(json.dumps({"at": at, "event": event, "text": text, **facts}), flush=True)
