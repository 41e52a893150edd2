"""A run as a process of its own, with the painter in place of a model: ``driver.py CONFIG``."""

import sys

from world import painting

from tgate_batch import cli, config, workflow
from tgate_batch.execute import plugins


def job() -> int:
    settings = config.load(sys.argv[1])
    plugins.register(settings.plugins)
    with painting():
        return workflow.render(settings)


if __name__ == "__main__":
    cli.main(job)
