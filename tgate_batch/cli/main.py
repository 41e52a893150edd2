"""The one command: finds the module of what is asked for, and runs it.

A command is a module of this package with a docstring (what it does, and examples), ``configure``
(adds its arguments to a parser) and ``run`` (does it, and returns an exit code or None for 0).
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from tgate_batch import say
from tgate_batch.cli.job import run_as_job

COMMANDS = {  # name -> its line in the list; its module has the name, with _ for -
    "render": "draw a config's prompts, score the pictures, write the report",
    "score": "score what an output holds, and report",
    "report": "write an output's report again",
    "status": "say how far a run is, from a listing alone",
    "verify": "prove an output: every page, row, picture and identity; or repair it",
    "export": "write an output's pictures as files, with metadata.jsonl",
    "reference": "make the file that pictures are compared with",
    "plan-size": "say how many prompts show a difference, from a pilot run",
    "macs": "count MACs from architectures alone",
    "image": "draw one picture with T-GATE",
    "bench": "measure, side by side",
    "init": "write a config to start from",
}

# Commands of a run: in the terminal stand their own lines alone, and no library's.
_ALONE = frozenset({"render", "score", "report", "verify", "export", "reference"})

EXIT_CODES = """exit codes:
  0    done
  1    verify found damage
  2    something given cannot be used, in one line
  3    a threshold was not kept, or is undecided
  4    something is missing at the end, too many pictures failed, or the cluster or storage was lost
  130  stopped by Ctrl-C        143  stopped by SIGTERM"""


def main(*words: str) -> None:
    """Runs ``words``, or what the command line says, and exits."""
    run_as_job(lambda: run(words or tuple(sys.argv[1:])))


def run(words: Sequence[str]) -> int | None:
    """Runs a command in this process; its exit code, None for 0. Raises as it does."""
    if words and words[0] in COMMANDS:
        name, *rest = words
        command = import_module(f"tgate_batch.cli.{name.replace('-', '_')}")
        parser = _parser(f"tgate-batch {name}", command.__doc__ or "")
        command.configure(parser)
        parser.add_argument("--log", choices=["text", "json"], default="text", help="form of lines")
        options = parser.parse_args(rest)
        say.as_json(options.log == "json")
        with say.alone() if name in _ALONE else nullcontext():
            return command.run(options)
    listed = "\n".join(f"  {name:10} {line}" for name, line in COMMANDS.items())
    parser = _parser(
        "tgate-batch",
        "Batch text-to-image rendering with T-GATE: drawn, scored, reported.\n\n"
        f"commands:\n{listed}\n\ntgate-batch COMMAND --help says more of each.",
    )
    parser.add_argument("--version", action="version", version=_version())
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


def _version() -> str:
    from importlib.metadata import version

    return f"tgate-batch {version('tgate-batch')}"
