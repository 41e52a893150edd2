"""The whole way: renders a config's prompts, scores the pictures, writes the report.

python jobs/render.py --config configs/demo.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted version, not another

from tgate_batch import cli, workflow


def job() -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and leave")
    arguments = parser.parse_args()
    config = cli.read_config(arguments)
    if arguments.dry_run:
        return workflow.dry_run(config)
    return workflow.render(config)


if __name__ == "__main__":
    cli.main(job)
