"""Finds the cheapest plan that keeps a limit, and confirms it on prompts that it has not used.

A plan is an arm: a gate, ended guidance, DeepCache, fewer steps, or several of these. The search
renders a small part of all images. Run the same command again to continue a search that was
stopped. The exit code is 3 if no plan was confirmed.

Examples:
  tgate-batch find-plan --config demo --output out/plan --lose-at-most "prompt_accuracy 0.02"
  tgate-batch find-plan --config run.yaml --lose-at-most "clip_score 0.2" --dry-run
"""

import argparse
from math import isfinite

from tgate_batch import console
from tgate_batch.cli import config_options
from tgate_batch.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    config_options.configure(parser)
    parser.add_argument(
        "--lose-at-most",
        action="append",
        default=[],
        metavar="'FIGURE NUMBER'",
        help="how much the plan may lose, in the figure's units (repeatable); adds to "
        "find_plan.limits",
    )
    parser.add_argument(
        "--budget-images",
        type=int,
        metavar="N",
        help="render at most this many images; the search then uses fewer prompts",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plans, costs and limits, and exit"
    )


def run(options: argparse.Namespace) -> int:
    settings = config_options.read(options)
    limits = dict(map(_limit, options.lose_at_most))
    console.info(f"{options.config}: checking config, prompts and output ...", event="phase")

    from tgate_batch import workflow

    return workflow.find_plan(settings, limits, options.budget_images, options.dry_run)


def _limit(text: str) -> tuple[str, float]:
    """A figure and a number. Raises UserError if it is not that."""
    try:
        figure, number = text.split()
        at_most = float(number)
        if not isfinite(at_most) or at_most < 0:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--lose-at-most {text!r} is not a figure and a number of at least 0. Fix: give e.g. "
            "'prompt_accuracy 0.02'"
        ) from None
    return figure, at_most
