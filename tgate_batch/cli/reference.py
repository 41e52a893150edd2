"""Makes the file that pictures are compared with: statistics of a set of pictures, one .npz.

Examples:
  tgate-batch reference --config coco10k --from val2014/
"""

import argparse

from tgate_batch import say
from tgate_batch.cli import configured


def configure(parser: argparse.ArgumentParser) -> None:
    configured.configure(parser)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help="pictures: a folder, a .tar, .parquet rows (a file or a folder), or a .txt of paths",
    )
    parser.add_argument(
        "--to",
        metavar="FILE.npz",
        help="in place of the config's score.reference; {extractor} stands for its name",
    )


def run(options: argparse.Namespace) -> int:
    settings = configured.read(options)
    say.info(f"{options.config}: finding the pictures ...", event="phase")

    from tgate_batch import workflow

    return workflow.reference(settings, options.source, options.to)
