"""A run as a process of its own, with the painter in place of a model: ``driver.py CONFIG``."""

import sys

from world import painting

from tgate_batch import config, workflow
from tgate_batch.cli.job import run_as_job
from tgate_batch.execute import plugins


def job() -> int:
    settings = config.load(sys.argv[1])
    plugins.register(settings.plugins)
    with painting():
        return workflow.render(settings)


if __name__ == "__main__":
    run_as_job(job)
