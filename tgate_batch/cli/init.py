"""Writes a first config: every key with its meaning, and a model's documented settings.

Examples:
  tgate-batch init sdxl > run.yaml
  tgate-batch init demo --to run.yaml
"""

import argparse
from pathlib import Path

from tgate_batch import config
from tgate_batch.config import docs
from tgate_batch.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=f"one of: {', '.join(config.names())}")
    parser.add_argument(
        "--to", metavar="FILE", type=Path, help="write to this file instead of standard output"
    )


def run(options: argparse.Namespace) -> None:
    file = config.find(options.model)
    if options.model not in config.names():
        raise UserError(
            f"MODEL: no bundled config is called {options.model!r}. Fix: give one of "
            f"{', '.join(config.names())}"
        )
    text = docs.commented(config.plain(file))
    if options.to is None:
        print(text, end="")
        return
    try:
        with options.to.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"--to {options.to} exists. Fix: give another file, or remove it") from None
    except OSError as error:
        raise UserError(f"--to {options.to} cannot be written: {error.strerror}") from None
    print(
        f"{options.to}: set its prompts and output, then run "
        f"tgate-batch render --config {options.to}"
    )
