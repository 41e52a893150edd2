"""Proves pictures: draws some rows of every arm again, from the output folder alone.

A fresh process draws them with the network blocked, and each is compared with the stored one.

python jobs/verify.py out/demo --again 2
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tgate_batch import cli, workflow


def job() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", metavar="OUTPUT", help="the output folder of a run, or its URI")
    parser.add_argument(
        "--again", type=int, default=2, metavar="N", help="rows of every arm to draw again"
    )
    arguments = parser.parse_args()
    return workflow.verify(arguments.output, arguments.again)


if __name__ == "__main__":
    cli.main(job)
