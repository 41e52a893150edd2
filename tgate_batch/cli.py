"""What the jobs share: the options, and an end that is one line and an exit code."""

import argparse
import json
import os
import sys
from collections.abc import Callable

from tgate_batch import config
from tgate_batch.config import Config
from tgate_batch.errors import ClusterLost, StorageError, UserError
from tgate_batch.execute import plugins
from tgate_batch.output import goodbye, history
from tgate_batch.storage import without_credentials


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every config-driven job has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--config", required=True, metavar="FILE", help="a run, e.g. configs/demo.yaml"
    )
    made.add_argument(
        "--output", metavar="DIR", help="output folder or URI, in place of the config's"
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=value",
        help="one setting of the config, e.g. --set prompts.limit=100 (repeatable)",
    )
    return made


def read_config(arguments: argparse.Namespace) -> Config:
    """The config with ``--set`` and ``--output`` laid over it, its plugins registered.

    Raises UserError.
    """
    overrides = list(arguments.set)
    if arguments.output is not None:
        overrides.append(f"output={json.dumps(arguments.output)}")
    read = config.load(arguments.config, overrides)
    plugins.register(read.plugins)
    return read


def main(job: Callable[[], int | None]) -> None:
    """Runs a job. What a user can do something about is one line on stderr, and an exit code:

    a user error 2, a lost cluster or storage 4, Ctrl-C 130, SIGTERM 143.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    history.whole_process = True
    goodbye.listen()
    try:
        code = job()
    except (UserError, StorageError) as error:
        print(f"error: {' '.join(without_credentials(str(error)).split())}", file=sys.stderr)
        code = goodbye.exit_code(error)
    except KeyboardInterrupt as stop:  # Ray's own farewell takes seconds, and may wait for ever
        goodbye.leave_now(goodbye.stopped(), goodbye.exit_code(stop))
    except ClusterLost as error:
        goodbye.leave_now(f"error: {error}", goodbye.exit_code(error))
    sys.stdout.flush()
    sys.exit(code or 0)
