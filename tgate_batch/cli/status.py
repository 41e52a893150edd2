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
    done, images, errors = progress["done"], progress["images"], progress["failed"]
    failed = f", {errors:,} failed" if errors else ""
    console.info(f"{progress['output']}: {done:,} of {images:,} images are done{failed}")
    for arm in progress["arms"]:
        failed = f", {arm['errors']:,} failed" if arm["errors"] else ""
        damaged = f", {arm['damaged']:,} files damaged" if arm["damaged"] else ""
        console.info(
            f"  {arm['model']} {arm['arm']}: {arm['done']:,} of {arm['images']:,} images{failed}, "
            f"{arm['files']:,} of {arm['shards']:,} files{damaged}"
        )
    if (process := progress["worked_on_by"]) is not None:
        pid, host, since = process["pid"], process["host"], process["since"]
        console.info(f"process {pid} on {host} has been working on it since {since}")
    elif done + (errors or 0) < images:
        console.info("no process is working on it; tgate-batch render with its config continues it")
    if errors:
        console.info("tgate-batch render with --retry-errors renders the failed images again")
    elif errors is None:
        console.info("failed images are not counted in so many files; --errors counts them")
