"""The command line: ``tgate-batch COMMAND ...``; each ``jobs/*.py`` runs one command."""

from tgate_batch.cli.main import main

__all__ = ["main"]
