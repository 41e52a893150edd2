"""The command line: finds the module of a command and runs it.

A command is a module of this package with a docstring (what it does, and examples), ``configure``
(adds its arguments to a parser) and ``run`` (does it, and returns an exit code or None for 0).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from tgate_batch import __version__, console
from tgate_batch.cli.job import run_as_job
from tgate_batch.execute import import_path

COMMANDS = {  # name -> its line in the list; its module has the name, with _ for -
    "render": "render a config's prompts, score the images, write the report",
    "score": "score the images of an output folder, write the report",
    "report": "write the report of an output folder again",
    "status": "show the progress of a run, from a file listing",
    "verify": "check every file, row and image of an output folder; repair it",
    "export": "write images as files, with metadata.jsonl",
    "reference": "compute the statistics of a reference set of images",
    "find-plan": "find the cheapest plan that keeps a limit, confirm it",
    "plan-size": "compute how many prompts show a difference, from a pilot run",
    "macs": "count MACs from architectures alone",
    "image": "render one image with T-GATE",
    "bench": "run a benchmark (in a checkout)",
    "init": "write a first config",
}

# Commands of a run: the terminal shows only our lines, not those of libraries.
_ALONE = frozenset({"render", "score", "report", "verify", "export", "reference", "find-plan"})

EXIT_CODES = """exit codes:
  0    done
  1    verify found damage
  2    the input cannot be used; one line says why
  3    a threshold is violated or undecided; find-plan confirmed no plan
  4    images are missing, too many failed, or the cluster or storage was lost
  130  stopped by Ctrl-C        143  stopped by SIGTERM"""


def main(*words: str) -> None:
    """Runs ``words``, or the arguments of the process, and exits."""
    run_as_job(lambda: run(words or tuple(sys.argv[1:])))


def run(words: Sequence[str]) -> int | None:
    """Runs a command in this process; returns its exit code, None for 0; raises its errors."""
    if words and words[0] in COMMANDS:
        name, *rest = words
        command = import_module(f"tgate_batch.cli.{name.replace('-', '_')}")
        parser = _parser(f"tgate-batch {name}", command.__doc__ or "")
        command.configure(parser)
        parser.add_argument(
            "--log", choices=["text", "json"], default="text", help="format of the log lines"
        )
        options = parser.parse_args(rest)
        console.as_json(options.log == "json")
        if not hasattr(options, "config") and getattr(options, "output", None):
            import_path.leave_out(os.curdir, options.output)  # it may be untrusted
        with console.alone() if name in _ALONE else nullcontext():
            return command.run(options)
    listed = "\n".join(f"  {name:10} {line}" for name, line in COMMANDS.items())
    parser = _parser(
        "tgate-batch",
        "Batch text-to-image rendering with T-GATE: render, score, report.\n\n"
        f"commands:\n{listed}\n\nRun tgate-batch COMMAND --help for the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"tgate-batch {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the above")
    parser.parse_args(words or ["--help"])
    return None


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=name,
        description=text.strip(),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
