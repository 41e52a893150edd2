"""The exceptions that a person at the command line is meant to read, and that say what is lost."""


class UserError(ValueError):
    """Something the user gave cannot work: what was found, why, and what to do, in one line.

    The jobs print it without a traceback and exit with code 2.
    """


class StorageError(Exception):
    """A storage is away, full, read-only or closed to us; no file on it is to blame.

    One line, which the jobs print without a traceback. It is no ``OSError``, so nobody takes an
    outage for a damaged or a missing file. ``denied``: the storage answered, and said no.
    ``store``: it is an object store, so that all files on it are concerned.
    """

    def __init__(self, message: str, denied: bool = False, store: bool = False):
        super().__init__(message)
        self.denied = denied
        self.store = store


class DeviceLost(RuntimeError):
    """The device is in an error state that only a fresh process leaves."""


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
