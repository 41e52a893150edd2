"""Proves an output folder: every page, row, picture and identity, and nothing foreign in it.

With --again, a fresh process without the network draws some rows again and compares them. A plugin
that the run names is code of whoever made the run: it is run only where --plugin names it, and is
never looked for in the current folder or in the output.

Examples:
  tgate-batch verify out/demo
  tgate-batch verify out/demo --repair      removes what is damaged: rendering makes it again
  tgate-batch verify out/demo --again 2
"""

import argparse

from tgate_batch import say
from tgate_batch.storage import without_credentials


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run, or its URI")
    parser.add_argument(
        "--again", type=int, default=0, metavar="N", help="rows of every arm to draw again"
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="with --again: run this plugin of the run (repeatable)",
    )
    parser.add_argument("--repair", action="store_true", help="remove what is damaged")


def run(options: argparse.Namespace) -> int:
    where = without_credentials(options.output)
    say.info(f"{where}: checking ledger, prompts and files ...", event="phase")

    from tgate_batch import workflow

    return workflow.verify(options.output, options.again, options.repair, options.plugin)
