"""The one exception that a person at the command line is meant to read."""


class UserError(ValueError):
    """Something the user gave cannot work: what was found, why, and what to do, in one line.

    The jobs print it without a traceback and exit with code 2.
    """


class DeviceLost(RuntimeError):
    """The device is in an error state that only a fresh process leaves."""
