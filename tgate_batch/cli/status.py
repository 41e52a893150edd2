"""Shows the progress of a run: finished and pending images by arm, and the process at work.

It reads the output alone, so it runs on any machine, also during the run. Failed images are counted
from the files; if there are more than 2,000 files, only with --errors.

Examples:
  tgate-batch status out/demo
  tgate-batch status s3://bucket/run --errors       opens every file, however many there are
"""

import argparse
import json

from tgate_batch import console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run, or its URI")
    parser.add_argument("--errors", action="store_true", help="count failed images in every file")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> int:
    from tgate_batch.output.status import status

    found = status(options.output, options.errors)
    if options.json:
        print(json.dumps(found, indent=1))  # JSON itself escapes what is not printable
    else:
        _show(found)
    return 0


def _show(found: dict) -> None:
    failed = f", {found['failed']:,} failed" if found["failed"] else ""
    console.info(
        f"{found['output']}: {found['done']:,} of {found['images']:,} images are done{failed}"
    )
    for arm in found["arms"]:
        errors = f", {arm['errors']:,} failed" if arm["errors"] else ""
        damaged = f", {arm['damaged']:,} files damaged" if arm["damaged"] else ""
        console.info(
            f"  {arm['model']} {arm['arm']}: {arm['done']:,} of {arm['images']:,} images{errors}, "
            f"{arm['files']:,} of {arm['shards']:,} files{damaged}"
        )
    if (worker := found["worked_on_by"]) is not None:
        console.info(
            f"process {worker['pid']} on {worker['host']} works there since {worker['since']}"
        )
    elif found["done"] + (found["failed"] or 0) < found["images"]:
        console.info("nobody works there; tgate-batch render with its config goes on")
    if found["failed"]:
        console.info("tgate-batch render with --retry-errors renders the failed images again")
    elif found["failed"] is None:
        console.info("failed images are not counted, of so many files; --errors counts them")
