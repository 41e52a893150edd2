"""Verifies an output folder: checksums, rows, images and provenance; and finds unexpected files.

With --again, a new process without network access renders some rows again and compares them. A
plugin of the run is code of the person who made the run: it runs only if --plugin names it, and it
is never searched in the current folder or in the output.

Examples:
  tgate-batch verify out/demo
  tgate-batch verify out/demo --repair      removes damaged files; render makes them again
  tgate-batch verify out/demo --again 2
"""

import argparse

from tgate_batch import console
from tgate_batch.storage import without_credentials


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run, or its URI")
    parser.add_argument(
        "--again", type=int, default=0, metavar="N", help="render N rows of every arm again"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="with --again: run this plugin of the run (repeatable)",
    )
    parser.add_argument("--repair", action="store_true", help="remove damaged files")


def run(options: argparse.Namespace) -> int:
    where = without_credentials(options.output)
    console.info(f"{where}: checking provenance, prompts and files ...", event="phase")

    from tgate_batch import workflow

    return workflow.verify(options.output, options.again, options.repair, options.plugin)
