"""Scores the images of an output folder, and writes its report again.

Examples:
  tgate-batch score --config demo
"""

import argparse

from tgate_batch import say
from tgate_batch.cli import configured
from tgate_batch.cli.configured import configure

__all__ = ["configure", "run"]


def run(options: argparse.Namespace) -> int:
    settings = configured.read(options)
    say.info(f"{options.config}: opening the output ...", event="phase")

    from tgate_batch import workflow

    return workflow.score(settings)
