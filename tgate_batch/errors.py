"""The exceptions that a person at the command line is meant to read, and that say what is lost."""


class UserError(ValueError):
    """Something the user gave cannot work: what was found, why, and what to do, in one line.

    The jobs print it without a traceback and exit with code 2.
    """


class DeviceLost(RuntimeError):
    """The device is in an error state that only a fresh process leaves."""


class ClusterLost(RuntimeError):
    """The Ray cluster is gone, and this driver with it. The message is one line for the user.

    What is finished stays; the jobs exit with code 4.
    """
