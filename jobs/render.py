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
    parser.add_argument(
        "--replace-stale",
        action="store_true",
        help="delete pictures of other settings than the config's, and render them again",
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="draw the pictures again that failed before"
    )
    arguments = parser.parse_args()
    config = cli.read_config(arguments)
    if arguments.dry_run:
        return workflow.dry_run(config, arguments.replace_stale)
    return workflow.render(config, arguments.replace_stale, arguments.retry_errors)


if __name__ == "__main__":
    cli.main(job)
