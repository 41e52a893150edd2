"""Runs a benchmark of ``benchmarks/``; needs a checkout of the repository."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tgate_batch.errors import UserError

_CHECKOUT = Path(__file__).resolve().parents[2]


def configure(parser: argparse.ArgumentParser) -> None:
    _command().configure(parser)


def run(options: argparse.Namespace) -> int:
    return _command().run(options)


def _command() -> ModuleType:
    """Imports the benchmarks' command line; raises UserError if this is not a checkout."""
    if not (_CHECKOUT / "benchmarks" / "command.py").is_file():
        raise UserError(
            "the benchmarks are not part of the installed package. Fix: clone the repository and "
            "run `make setup`, then `.venv/bin/tgate-batch bench` there"
        )
    if str(_CHECKOUT) not in sys.path:
        sys.path.insert(0, str(_CHECKOUT))
    return import_module("benchmarks.command")
