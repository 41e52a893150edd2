"""Proves a run: reads every file of its output folder, and says what is not as it should be.

Every page of every file, its rows, its pictures, and what it was made of are compared with what
the ledger and the frozen prompts demand. Exit code 0: sound; 1: something is damaged or missing.

python jobs/verify.py out/demo             # only checks
python jobs/verify.py out/demo --repair    # removes what is damaged: the next run makes it again
python jobs/verify.py out/demo --again 2   # then draws 2 rows of every arm again, and compares

Pictures are drawn again from the output folder alone, in a fresh process with the network blocked.
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
        "--repair",
        action="store_true",
        help="remove what is damaged, and what was made of it; a file of an unknown name stays",
    )
    parser.add_argument(
        "--again", type=int, default=0, metavar="N", help="rows of every arm to draw again"
    )
    arguments = parser.parse_args()
    return workflow.verify(arguments.output, arguments.again, arguments.repair)


if __name__ == "__main__":
    cli.main(job)
