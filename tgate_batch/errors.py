"""The exceptions that a person at the command line is meant to read."""


class UserError(ValueError):
    """Something the user gave cannot work: what was found, why, and what to do, in one line.

    The jobs print it without a traceback and exit with code 2.
    """


class StorageError(Exception):
    """A storage is away, full, read-only or closed to us; no file on it is to blame.

    One line, which the jobs print without a traceback. It is no ``OSError``, so nobody takes an
    outage for a damaged or a missing file. ``denied``: the storage answered, and said no.
    """

    def __init__(self, message: str, denied: bool = False):
        super().__init__(message)
        self.denied = denied


class DeviceLost(RuntimeError):
    """The device is in an error state that only a fresh process leaves."""
