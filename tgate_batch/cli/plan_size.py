"""Computes how many prompts show a difference (power 90%, one-sided 5%), from a pilot run.

Examples:
  tgate-batch plan-size --output out/pilot --see "clip_score_change -0.2"
"""

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", required=True, metavar="PILOT", help="the output folder of a run, or its URI"
    )
    parser.add_argument(
        "--see",
        required=True,
        metavar="'FIGURE DIFFERENCE'",
        help="a figure of the report, and the difference to show, in its units",
    )
    parser.add_argument("--model", help="this model only")
    parser.add_argument("--arm", help="this arm only")


def run(options: argparse.Namespace) -> None:
    from tgate_batch.execute import plugins
    from tgate_batch.output.run import load_run
    from tgate_batch.report.plan_size import plan_size
    from tgate_batch.report.summary import summarize

    run = load_run(options.output)
    plugins.register(run.config.plugins)
    arms = [
        arm
        for arm in summarize(run)["arms"]
        if options.model in (None, arm["model"]) and options.arm in (None, arm["arm"])
    ]
    print("\n".join(plan_size(arms, options.see)))
