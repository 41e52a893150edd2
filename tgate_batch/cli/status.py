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

    progress = status(options.output, options.errors)
    if options.json:
        print(json.dumps(progress, indent=1))  # JSON itself escapes what is not printable
    else:
        _show(progress)
    return 0


def _show(progress: dict) -> None:
    failed = f", {progress['failed']:,} failed" if progress["failed"] else ""
    console.info(
        f"{progress['output']}: {progress['done']:,} of {progress['images']:,} images are done{failed}"
    )
    for arm in progress["arms"]:
        errors = f", {arm['errors']:,} failed" if arm["errors"] else ""
        damaged = f", {arm['damaged']:,} files damaged" if arm["damaged"] else ""
        console.info(
            f"  {arm['model']} {arm['arm']}: {arm['done']:,} of {arm['images']:,} images{errors}, "
            f"{arm['files']:,} of {arm['shards']:,} files{damaged}"
        )
    if (worker := progress["worked_on_by"]) is not None:
        console.info(
            f"process {worker['pid']} on {worker['host']} has been working on it since {worker['since']}"
        )
    elif progress["done"] + (progress["failed"] or 0) < progress["images"]:
        console.info(
            "no process is working on it. To continue, run tgate-batch render with its config"
        )
    if progress["failed"]:
        console.info(
            "to render the failed images again, run tgate-batch render with --retry-errors"
        )
    elif progress["failed"] is None:
        console.info(
            "failed images are not counted, because there are many files; --errors counts them"
        )
