"""Writes images as files that training scripts, pytorch-fid and `datasets` can read.

Each model and arm gets its own folder, FOLDER/<model>/<arm>, with the stored image files and
metadata.jsonl (file_name, text, and the other columns): the `imagefolder` form. Failed rows are
left out. Run the same command again to continue an interrupted export. If shards are missing or
damaged, the others are written and the exit code is 4.

Examples:
  tgate-batch export out/demo --to images
  tgate-batch export out/demo --to s3://bucket/images --arm tgate
"""

import argparse

from tgate_batch import console
from tgate_batch.storage import without_credentials


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run, or its URI")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="the target folder or URI")
    parser.add_argument("--model", help="export this model only")
    parser.add_argument("--arm", help="export this arm only")
    parser.add_argument("--format", default="imagefolder", help="imagefolder (the only one)")


def run(options: argparse.Namespace) -> int:
    where = without_credentials(options.output)
    console.info(f"{where}: opening the output ...", event="phase")

    from tgate_batch import workflow

    return workflow.export(options.output, options.to, options.model, options.arm, options.format)
