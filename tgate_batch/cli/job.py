"""A command as a process: what a user can do something about is one line, and an exit code."""

import os
import sys
from collections.abc import Callable

from tgate_batch import say
from tgate_batch.errors import ClusterLost, NoRoom, StorageError, UserError
from tgate_batch.output import goodbye, history
from tgate_batch.storage import without_credentials


def run_as_job(job: Callable[[], int | None]) -> None:
    """Runs a job and exits with its code.

    A user error is 2, a cluster that is lost or has no room and a lost storage 4, Ctrl-C 130,
    SIGTERM 143.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What Ray says of workers that died: we say it. It reads this while it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    history.whole_process = True
    goodbye.listen()
    try:
        code = job()
    except (UserError, StorageError, NoRoom) as error:
        line = " ".join(without_credentials(str(error)).split())
        say.error(line)
        code = goodbye.exit_code(error)
    except KeyboardInterrupt as stop:  # Ray's own farewell takes seconds, and may wait for ever
        goodbye.leave_now(goodbye.stopped(), goodbye.exit_code(stop))
    except ClusterLost as error:
        goodbye.leave_now(f"error: {error}", goodbye.exit_code(error))
    sys.stdout.flush()
    sys.exit(code or 0)
