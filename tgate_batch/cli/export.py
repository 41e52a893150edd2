"""Writes an output's pictures as files, as training scripts, pytorch-fid and `datasets` read them.

Each model and arm gets a folder of its own, FOLDER/<model>/<arm>, with the pictures' files as they
are stored and metadata.jsonl (file_name, text, and the other columns): the `imagefolder` form.
Rows that failed are left out. The same command goes on where it was killed. Where shards are
missing or damaged, the others are written, and the exit code is 4.

Examples:
  tgate-batch export out/demo --to pictures
  tgate-batch export out/demo --to s3://bucket/pictures --arm tgate
"""

import argparse

from tgate_batch import say
from tgate_batch.storage import without_credentials


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run, or its URI")
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="where the pictures go, a folder or a URI"
    )
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--arm", help="only this one")
    parser.add_argument("--format", default="imagefolder", help="imagefolder, the only one so far")


def run(options: argparse.Namespace) -> int:
    where = without_credentials(options.output)
    say.info(f"{where}: opening the output ...", event="phase")

    from tgate_batch import workflow

    return workflow.export(options.output, options.to, options.model, options.arm, options.format)
