"""The command line: ``tgate-batch COMMAND ...``, of which each ``jobs/*.py`` is one."""

from tgate_batch.cli.main import main

__all__ = ["main"]
