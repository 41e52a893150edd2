"""The exceptions that a person at the command line is meant to read, and that say what is lost."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user gave cannot work: what was found, why, and what to do, in one line.

    Several problems are several arguments. The jobs print each on a line of its own, without a
    traceback, and exit with code 2.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "; ".join(self.problems)


class Problems:
    """Collects user errors, so that all of them are reported together, each once."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, *problems: str) -> None:
        self._found |= dict.fromkeys(problems)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collects the UserError that ends the block."""
        try:
            yield
        except UserError as error:
            self.add(*error.problems)

    def raise_if_any(self) -> None:
        """Raises all of them as one UserError."""
        if self._found:
            raise UserError(*self._found)


class StorageError(Exception):
    """A storage is away, full, read-only or closed to us; no file on it is to blame.

    One line, which the jobs print without a traceback. It is no ``OSError``, so nobody takes an
    outage for a damaged or a missing file. ``denied``: the storage answered, and said no.
    ``store``: it is an object store, so that all files on it are concerned. ``lasting``: it does
    not end by waiting (a full or read-only disk, a right that lacks).
    """

    def __init__(
        self, message: str, denied: bool = False, store: bool = False, lasting: bool = False
    ):
        super().__init__(message)
        self.denied = denied
        self.store = store
        self.lasting = lasting


class OutputLost(RuntimeError):
    """Another run has taken the output folder over, so this one must not write there any more.

    The message is one line for the user; the jobs exit with code 4. It is no ``StorageError`` and
    no ``OSError``, so nobody waits for its end or tries again.
    """


class DeviceLost(RuntimeError):
    """The device is in an error state that only a fresh process leaves."""


_JOINERS = "\u200c\u200d"  # between letters of some scripts, and parts of an emoji


def printable(text: str, keep: str = "") -> str:
    """Text that moves no cursor and hides nothing: what is not printable is written as an escape.

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


def one_line(text: object, limit: int = 300) -> str:
    """Text for a message: of printable characters alone, without line breaks, cut to ``limit``."""
    text = str(text)
    if len(text) > limit:
        text = text[:limit] + "..."
    if not text.isprintable():
        text = " ".join(text.split())
    return text if text.isprintable() else repr(text)[1:-1]


def shown(value: object, limit: int = 60) -> str:
    """A value for a message: text in quotes, escaped and cut; of what is large only its kind."""
    if isinstance(value, str | bytes):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    if isinstance(value, bool | float) or value is None:
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 128 else "a number of many digits"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


class ClusterLost(RuntimeError):
    """The Ray cluster is gone, and this driver with it. The message is one line for the user.

    What is finished stays; the jobs exit with code 4.
    """


class NoRoom(RuntimeError):
    """The cluster has no place for a worker: too few machines, or too little memory. One line.

    What is finished stays; the jobs exit with code 4.
    """
