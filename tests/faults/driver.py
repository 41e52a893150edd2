"""``driver.py CONFIG [--retry-errors] [--replace-stale]``: a run as a process, painted.

The environment may say how many seconds a beat of its claim has.
"""

import os
import sys

from world import drawing

from tgate_batch import config, workflow
from tgate_batch.cli.job import run_as_job
from tgate_batch.execute import plugins
from tgate_batch.output import lock


def job() -> int:
    lock.BEAT_SECONDS = float(os.environ.get("TGATE_BATCH_BEAT", lock.BEAT_SECONDS))
    settings = config.load(sys.argv[1])
    plugins.register(settings.plugins)
    with drawing():
        return workflow.render(
            settings,
            replace_stale="--replace-stale" in sys.argv,
            retry_errors="--retry-errors" in sys.argv,
        )


if __name__ == "__main__":
    run_as_job(job)
