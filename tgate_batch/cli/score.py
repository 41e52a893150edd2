"""Scores the images of an output folder, and writes its report again.

Examples:
  tgate-batch score --config demo
"""

import argparse

from tgate_batch import console
from tgate_batch.cli import config_options
from tgate_batch.cli.config_options import configure

__all__ = ["configure", "run"]


def run(options: argparse.Namespace) -> int:
    settings = config_options.read(options)
    console.info(f"{options.config}: opening the output ...", event="phase")

    from tgate_batch import workflow

    return workflow.score(settings)
