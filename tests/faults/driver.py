"""``driver.py CONFIG [--retry-errors]``: a run as a process, the painter in place of a model."""

import sys

from world import drawing

from tgate_batch import config, workflow
from tgate_batch.cli.job import run_as_job
from tgate_batch.execute import plugins


def job() -> int:
    settings = config.load(sys.argv[1])
    plugins.register(settings.plugins)
    with drawing():
        return workflow.render(settings, retry_errors="--retry-errors" in sys.argv)


if __name__ == "__main__":
    run_as_job(job)
