"""Scores what an output folder holds, and writes its report again.

python jobs/score.py --config configs/demo.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tgate_batch import cli, workflow


def job() -> int:
    arguments = cli.parser(__doc__).parse_args()
    return workflow.score(cli.read_config(arguments))


if __name__ == "__main__":
    cli.main(job)
