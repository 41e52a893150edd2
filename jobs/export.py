"""Writes a run's pictures as files, as training scripts, pytorch-fid and `datasets` read them.

python jobs/export.py out/demo --to pictures                 # every model and arm
python jobs/export.py out/demo --to pictures --arm tgate     # one arm: pictures/demo/tgate

datasets.load_dataset("imagefolder", data_dir="pictures/demo/tgate") then has the picture, its text,
and its other columns; rows that failed are left out. The same command goes on where it was killed.
Exit code 0: all pictures are there; 4: some shards are missing or damaged, the others are there.
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
        "--to",
        required=True,
        metavar="FOLDER",
        help="where the pictures go, a folder or a URI: FOLDER/<model>/<arm>/",
    )
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--arm", help="only this one")
    parser.add_argument(
        "--format", default="imagefolder", help="how files are named: imagefolder (the default)"
    )
    arguments = parser.parse_args()
    return workflow.export(
        arguments.output, arguments.to, arguments.model, arguments.arm, arguments.format
    )


if __name__ == "__main__":
    cli.main(job)
