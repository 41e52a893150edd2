"""Shows the progress of a run: finished and pending images by arm, and the process at work.

It reads a file listing of the output, so it runs on any machine, also during the run.

Examples:
  tgate-batch status out/demo
  tgate-batch status s3://bucket/run --errors       counts error rows too (opens every file)
"""

import argparse
import json

from tgate_batch import say


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run, or its URI")
    parser.add_argument("--errors", action="store_true", help="count error rows, file by file")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> int:
    from tgate_batch.output.status import status

    found = status(options.output, options.errors)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    return 0


def _show(found: dict) -> None:
    say.info(f"{found['output']}: {found['done']:,} of {found['images']:,} pictures are done")
    for arm in found["arms"]:
        errors = "" if arm["errors"] is None else f", {arm['errors']:,} errors"
        damaged = f", {arm['damaged']:,} files damaged" if arm["damaged"] else ""
        say.info(
            f"  {arm['model']} {arm['arm']}: {arm['done']:,} of {arm['images']:,} pictures, "
            f"{arm['files']:,} of {arm['shards']:,} files{errors}{damaged}"
        )
    if (worker := found["worked_on_by"]) is not None:
        say.info(f"process {worker['pid']} on {worker['host']} works there since {worker['since']}")
    elif found["done"] < found["images"]:
        say.info("nobody works there; tgate-batch render with its config goes on")
