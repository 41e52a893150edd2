"""Writes an output folder's report again from the scores in it.

python jobs/report.py --config configs/demo.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tgate_batch import cli, workflow


def job() -> int:
    arguments = cli.parser(__doc__).parse_args()
    return workflow.report(cli.read_config(arguments))


if __name__ == "__main__":
    cli.main(job)
