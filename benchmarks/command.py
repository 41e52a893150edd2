"""The command line of the benchmarks: the parameters of a benchmark's function are its options."""

import argparse
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from tgate_batch import console

BENCHMARKS = {  # name -> what it compares; the module's function has the name, after `bench_`
    "gate": "a gated call with tgate 1.0.0's, a plain one, DeepCache's",
    "job": "the whole Ray job with a bare loop; two workers with one",
    "orchestration": "planning, scheduling and writing, with a stand-in pipeline",
    "engine": "each engine setting with the defaults",
    "padding": "a few images as a whole batch with their own number of rows",
    "rows": "rows with settings of their own with uniform files",
    "encode": "image formats on threads",
    "statistics": "distances with pytorch-fid's: memory and time",
    "scale-scoring": "scoring of fabricated measurements: CPU time, memory, same figures",
    "scale-pool": "resuming and beginning a large run; its tail, simulated",
    "scale-report": "the report of a large run: time, memory, bytes of the page",
    "plan-search": "simulated plan searches with what they promise",
    "coverage": "intervals and thresholds with what they promise, simulated",
    "model": "an architecture with random weights on this device, by arm",
    "gpu": "the GPU table: full-size models with random weights, resumable",
    "demo": "the embedded model's whole run, arm by arm",
}
TABLES = "tables"


def help_text() -> str:
    """Returns the help of the command: every benchmark in a line."""
    lines = BENCHMARKS | {TABLES: "write the documents' figures again from docs/benchmarks/"}
    listed = "\n".join(f"  tgate-batch bench {name:14} {line}" for name, line in lines.items())
    return (
        "Benchmarks: what is compared is measured side by side in one run; the ratios are printed "
        f"as JSON.\n\nExamples:\n{listed}"
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``tgate-batch bench``."""
    parser.description = help_text()
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="write the results there too, with command, date, hardware and versions",
    )
    parser.add_argument("benchmark", choices=[*BENCHMARKS, TABLES], help="one of the above")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see `bench BENCHMARK --help`")


def run(options: argparse.Namespace) -> int:
    """Runs a benchmark and prints its results; returns 1 if it reports that something is short."""
    name = options.benchmark
    if name == TABLES:
        return _write_tables(options.options)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or torch's profiler prints its every start
    with console.apart():
        console.info(f"bench {name}: loading ...", event="phase")
        benchmark = find_benchmark(name)
        results = benchmark(**vars(option_parser(name, benchmark).parse_args(options.options)))
    print(json.dumps(results, indent=2))
    if options.output is not None:
        from benchmarks.record import record

        what = (benchmark.__doc__ or "").partition("\n")[0]
        text = json.dumps(record(what, results), indent=2)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 1 if results.get("short") else 0


def find_benchmark(name: str) -> Callable[..., dict[str, Any]]:
    """Returns the function of a benchmark; nothing else is imported."""
    word = name.replace("-", "_")
    return getattr(import_module(f"benchmarks.{word}"), f"bench_{word}")


def option_parser(name: str, benchmark: Callable) -> argparse.ArgumentParser:
    """A parser with an option for each parameter, of the type of its annotation.

    A parameter without a default is positional; a tuple takes several values; the text of an
    ``Annotated`` type is the help.
    """
    parser = argparse.ArgumentParser(
        prog=f"tgate-batch bench {name}",
        description=inspect.getdoc(benchmark),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(benchmark, include_extras=True)
    for parameter in inspect.signature(benchmark).parameters.values():
        settings = _option(hints[parameter.name])
        if parameter.default is parameter.empty:
            parser.add_argument(parameter.name, **settings)
        else:
            flag = f"--{parameter.name.replace('_', '-')}"
            parser.add_argument(flag, default=parameter.default, **settings)
    return parser


def _option(hint: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` for a type."""
    if typing.get_origin(hint) is Annotated:
        inner, text = typing.get_args(hint)
        return _option(inner) | {"help": text}
    if isinstance(hint, types.UnionType):  # a type or None
        return _option(typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is tuple:
        return {"nargs": "*", "type": typing.get_args(hint)[0]} | {"action": _Tuple}
    return {"action": "store_true"} if hint is bool else {"type": hint}


class _Tuple(argparse.Action):
    """Keeps several values as a tuple, as the default is."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, tuple(values))


def _write_tables(options: Sequence[str]) -> int:
    """Writes the documents of this checkout whose figures are not those of the records."""
    from benchmarks.tables import written

    argparse.ArgumentParser(prog=f"tgate-batch bench {TABLES}").parse_args(options)
    for page, text in written().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            console.info(f"written: {page}")
    return 0
