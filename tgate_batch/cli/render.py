"""Renders a config's prompts, scores the images, and writes the report.

Run the same command again to continue a run that was stopped.

Examples:
  tgate-batch render --config demo
  tgate-batch render --config run.yaml --output s3://bucket/run --set prompts.limit=1000
"""

import argparse

from tgate_batch import console
from tgate_batch.cli import config_options


def configure(parser: argparse.ArgumentParser) -> None:
    config_options.configure(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and exit")
    parser.add_argument(
        "--replace-stale",
        action="store_true",
        help="delete images rendered with other settings, and render them again",
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="render the images again that failed before"
    )


def run(options: argparse.Namespace) -> int:
    settings = config_options.read(options)
    console.info(f"{options.config}: checking config, prompts and output ...", event="phase")

    from tgate_batch import workflow

    if options.dry_run:
        return workflow.dry_run(settings, options.replace_stale)
    return workflow.render(settings, options.replace_stale, options.retry_errors)
