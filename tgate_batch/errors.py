"""Exceptions whose one-line messages are shown to the user, and helpers that format messages."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Invalid user input; the message is one line: what is wrong, why, and how to fix it.

    Several problems are several arguments. The jobs print each on a separate line, without a
    traceback, and exit with code 2.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "; ".join(self.problems)


class Problems:
    """Collects user errors, so that all of them are reported together, each once.

    Example::

        problems = Problems()
        with problems.collected():
            raise UserError("steps is 0")
        problems.raise_if_any()
    """

    def __init__(self) -> None:
        self._problems: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, *problems: str) -> None:
        self._problems |= dict.fromkeys(problems)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collects the UserError that ends the block."""
        try:
            yield
        except UserError as error:
            self.add(*error.problems)

    def raise_if_any(self) -> None:
        """Raises all of them as one UserError."""
        if self._problems:
            raise UserError(*self._problems)


class StorageError(Exception):
    """A storage is unreachable, full, read-only or denies access; no single file is damaged.

    The message is one line, printed without a traceback. It is not an ``OSError``, so an outage is
    not mistaken for a damaged or missing file. ``denied``: the storage refused access. ``store``:
    it is an object store, so all files on it are affected. ``lasting``: waiting does not help (a
    full or read-only disk, a missing permission).
    """

    def __init__(
        self, message: str, denied: bool = False, store: bool = False, lasting: bool = False
    ):
        super().__init__(message)
        self.denied, self.store, self.lasting = denied, store, lasting


class OutputLost(RuntimeError):
    """Another run has taken over the output folder, so this run must stop writing there.

    The message is one line for the user; the jobs exit with code 4. It is neither a
    ``StorageError`` nor an ``OSError``, so it is not retried.
    """


class ClusterLost(RuntimeError):
    """The Ray cluster is lost, and the driver stops. The message is one line for the user.

    Finished images are kept; the jobs exit with code 4.
    """


class NoRoom(RuntimeError):
    """The cluster cannot fit a worker: too few machines, or too little memory.

    The message is one line for the user. Finished images are kept; the jobs exit with code 4.
    """


class DeviceLost(RuntimeError):
    """The device is in an error state that only a new process can clear."""


_JOINERS = "\u200c\u200d"  # between letters of some scripts, and parts of an emoji


def printable(text: str, keep: str = "") -> str:
    """Returns the text with every non-printable character written as an escape.

    Control characters, line breaks, bidirectional overrides and halves of surrogate pairs are not
    printable; spaces of every width are. ``keep``: characters that stay, such as our line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        one
        if one.isprintable() or unicodedata.category(one) == "Zs" or one in keep or one in _JOINERS
        else one.encode("unicode_escape").decode()
        for one in text
    )


def message_of(error: BaseException, limit: int | None = None) -> str:
    """Returns an error's message on one line, cut to ``limit``; the class name if it is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def one_line(text: object, limit: int = 300) -> str:
    """Returns the text for a message: printable, without line breaks, cut to ``limit``."""
    text = str(text)
    if len(text) > limit:
        text = text[:limit] + "..."
    if not text.isprintable():
        text = " ".join(text.split())
    return text if text.isprintable() else repr(text)[1:-1]


def reason_of(error: BaseException, limit: int | None = 300) -> str:
    """Returns an exception's message on one line, cut to ``limit``; its class if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def os_reason(error: BaseException) -> str:
    """Returns the system's text for an OSError ("No space left on device"), else ``reason_of``."""
    return getattr(error, "strerror", None) or reason_of(error)


def shown(value: object, limit: int = 60) -> str:
    """Returns a value for a message: text quoted, escaped and cut; large values by type only."""
    if isinstance(value, str | bytes):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 128 else "a number of many digits"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
