"""What the jobs share: the options, and errors as one line with exit code 2."""

import argparse
import json
import os
import sys
from collections.abc import Callable

from tgate_batch import config
from tgate_batch.config import Config
from tgate_batch.errors import StorageError, UserError
from tgate_batch.execute import plugins
from tgate_batch.output import history
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
    """Runs a job: user errors are one line on stderr and exit code 2, Ctrl-C is 130."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    history.whole_process = True
    try:
        code = job()
    except (UserError, StorageError) as error:
        print(f"error: {without_credentials(str(error))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the missing shards", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code or 0)
