"""Runs a command as a process: reports a user error in one line, and exits with its code."""

import os
import sys
from collections.abc import Callable

from tgate_batch import console
from tgate_batch.errors import ClusterLost, NoRoom, OutputLost, StorageError, UserError
from tgate_batch.output import history, shutdown
from tgate_batch.storage import without_credentials


def run_as_job(job: Callable[[], int | None]) -> None:
    """Runs a job and exits with its code.

    2 for a user error; 4 for a lost cluster, output or storage, or a cluster without room; 130 for
    Ctrl-C; 143 for SIGTERM.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # We report dead workers ourselves. Ray reads this variable while it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    history.whole_process = True
    shutdown.install_signal_handlers()
    try:
        code = exit_code_of(job)
    except KeyboardInterrupt as stop:  # Ray's shutdown takes seconds, and may hang
        shutdown.exit_now(shutdown.stop_message(), shutdown.exit_code(stop))
    except (ClusterLost, OutputLost) as error:
        shutdown.exit_now(f"error: {error}", shutdown.exit_code(error))
    sys.stdout.flush()
    sys.exit(code)


def exit_code_of(job: Callable[[], int | None]) -> int:
    """Runs a job; returns its exit code. Logs user and storage errors, a line per problem."""
    try:
        return job() or 0
    except (UserError, StorageError, NoRoom) as error:
        for problem in getattr(error, "problems", (str(error),)):
            console.error(" ".join(without_credentials(problem).split()))
        return shutdown.exit_code(error)
