"""A command as a process: what a user can do something about is one line, and an exit code."""

import os
import sys
from collections.abc import Callable

from tgate_batch import console
from tgate_batch.errors import ClusterLost, NoRoom, OutputLost, StorageError, UserError
from tgate_batch.output import history, shutdown
from tgate_batch.storage import without_credentials


def run_as_job(job: Callable[[], int | None]) -> None:
    """Runs a job and exits with its code.

    A user error is 2; a lost cluster, output or storage, or a cluster without room, 4; Ctrl-C 130;
    SIGTERM 143.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What Ray says of workers that died: we say it. It reads this while it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    history.whole_process = True
    shutdown.install_signal_handlers()
    try:
        code = exit_code_of(job)
    except KeyboardInterrupt as stop:  # Ray's own farewell takes seconds, and may wait for ever
        shutdown.exit_now(shutdown.stop_message(), shutdown.exit_code(stop))
    except (ClusterLost, OutputLost) as error:
        shutdown.exit_now(f"error: {error}", shutdown.exit_code(error))
    sys.stdout.flush()
    sys.exit(code)


def exit_code_of(job: Callable[[], int | None]) -> int:
    """Runs a job; its exit code. A user error and a storage in trouble are said in a line each."""
    try:
        return job() or 0
    except (UserError, StorageError, NoRoom) as error:
        for problem in getattr(error, "problems", (str(error),)):
            console.error(" ".join(without_credentials(problem).split()))
        return shutdown.exit_code(error)
