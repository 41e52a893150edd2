"""Says how many prompts show a difference with power 90% (one-sided 5%), from a pilot run.

python jobs/plan_size.py --output out/pilot --see "clip_score_change -0.2"
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tgate_batch import cli


def job() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", required=True, metavar="PILOT", help="the output folder of a run, or its URI"
    )
    parser.add_argument(
        "--see",
        required=True,
        metavar="'FIGURE DIFFERENCE'",
        help="a figure of the report and a difference in its units",
    )
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--arm", help="only this one")
    arguments = parser.parse_args()

    from tgate_batch.execute import plugins
    from tgate_batch.output.run import load_run
    from tgate_batch.report.plan_size import plan_size
    from tgate_batch.report.summary import summarize

    run = load_run(arguments.output)
    plugins.register(run.config.plugins)
    arms = [
        arm
        for arm in summarize(run)["arms"]
        if arguments.model in (None, arm["model"]) and arguments.arm in (None, arm["arm"])
    ]
    print("\n".join(plan_size(arms, arguments.see)))


if __name__ == "__main__":
    cli.main(job)
