"""Computes the statistics of a reference set of images, which FID needs, into one .npz file.

Examples:
  tgate-batch reference --config coco10k --from val2014/
"""

import argparse

from tgate_batch import console
from tgate_batch.cli import config_options


def configure(parser: argparse.ArgumentParser) -> None:
    config_options.configure(parser)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help="images: a folder, a .tar, .parquet rows (a file or a folder), or a .txt of paths",
    )
    parser.add_argument(
        "--to",
        metavar="FILE.npz",
        help="the file to write; default: score.reference; {extractor} is replaced by its name",
    )


def run(options: argparse.Namespace) -> int:
    settings = config_options.read(options)
    console.info(f"{options.config}: reading the images ...", event="phase")

    from tgate_batch import workflow

    return workflow.reference(settings, options.source, options.to)
