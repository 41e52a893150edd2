"""Benchmarks: what is compared is measured side by side in one run; the ratios come out as JSON.

Examples:
  tgate-batch bench gate            a gated call beside tgate 1.0.0's, a plain one, DeepCache's
  tgate-batch bench job             the whole Ray job beside a bare loop; two workers beside one
  tgate-batch bench orchestration   planning, scheduling and writing with a stand-in pipeline
  tgate-batch bench engine          each engine setting beside the defaults
  tgate-batch bench padding         a few pictures as a whole batch, beside their own number of rows
  tgate-batch bench rows            rows with settings of their own, beside uniform files
  tgate-batch bench encode          picture formats on threads
  tgate-batch bench statistics      distances beside pytorch-fid's: memory and time
  tgate-batch bench scale-scoring   scoring fabricated measurements: CPU time, memory, same figures
  tgate-batch bench scale-pool      resuming and beginning a large run; its tail, simulated
  tgate-batch bench scale-report    the report of a large run: time, memory, bytes of the page
  tgate-batch bench coverage        whether intervals and thresholds hold what they say, simulated
  tgate-batch bench model sdxl      an architecture with random weights on this device
  tgate-batch bench gpu             the GPU table: full-size models with random weights, resumable
  tgate-batch bench demo            the embedded model's run, whole: what its report says
  tgate-batch bench tables          writes the documents' figures again from docs/benchmarks/
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgate_batch import say


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="write them there too, with command, date, hardware and versions",
    )
    kinds = parser.add_subparsers(dest="benchmark", required=True)
    gate = kinds.add_parser("gate")
    gate.add_argument("--rounds", type=int, default=9)
    job = kinds.add_parser("job")
    job.add_argument("--images", type=int, default=576)
    job.add_argument("--steps", type=int, default=25)
    job.add_argument("--rounds", type=int, default=6)
    orchestration = kinds.add_parser("orchestration")
    orchestration.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000])
    engine = kinds.add_parser("engine")
    engine.add_argument("--model", default="demo")
    engine.add_argument("--batch-size", type=int, default=10)
    engine.add_argument("--rounds", type=int, default=5)
    engine.add_argument("--settings", nargs="+", help="beside the defaults; all if left out")
    padding = kinds.add_parser("padding")
    padding.add_argument("--model", default="demo")
    padding.add_argument("--batch-size", type=int, default=8)
    padding.add_argument("--pictures", type=int, nargs="+", default=[1, 2, 4, 8, 12])
    padding.add_argument("--rounds", type=int, default=5)
    rows = kinds.add_parser("rows")
    rows.add_argument("--rows", type=int, default=2000)
    encode = kinds.add_parser("encode")
    encode.add_argument("--side", type=int, default=512, help="pixels")
    statistics = kinds.add_parser("statistics")
    statistics.add_argument("--images", type=int, default=1000)
    scale = kinds.add_parser("scale-scoring")
    scale.add_argument("--rows", type=int, default=1_000_000)
    scale.add_argument("--dimensions", type=int, default=1280)
    scale.add_argument("--flat-rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    report = kinds.add_parser("scale-report")
    report.add_argument("--prompts", type=int, default=10_000)
    report.add_argument("--side", type=int, default=512, help="pixels")
    pool = kinds.add_parser("scale-pool")
    pool.add_argument("--shards", type=int, default=100_000, help="finished, of a run that goes on")
    pool.add_argument("--prompts", type=int, default=10_000_000, help="of a fresh run")
    pool.add_argument("--milliseconds", type=float, default=30, help="a request to the store")
    coverage = kinds.add_parser("coverage")
    coverage.add_argument("--runs", type=int, default=300, help="a cell")
    coverage.add_argument("--nights", type=int, default=1000, help="a threshold")
    model = kinds.add_parser("model")
    model.add_argument("name", help="a catalogue name, e.g. sdxl")
    model.add_argument("--mid-size", action="store_true", help="small enough for a CPU")
    model.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    model.add_argument("--steps", type=int, default=25)
    model.add_argument("--gate-step", type=int, default=10)
    model.add_argument("--rounds", type=int, default=5)
    model.add_argument("--arms", nargs="+", help="beside the baseline; all if left out")
    model.add_argument("--compile", action="store_true", help="torch.compile of the denoiser")
    gpu = kinds.add_parser("gpu")
    gpu.add_argument("--size", choices=("full", "small"), default="full", help="small: for a CPU")
    gpu.add_argument(
        "--cells",
        metavar="FILE",
        type=Path,
        default=Path("gpu-cells.jsonl"),
        help="keeps each measured cell; those that are there are not measured again",
    )
    gpu.add_argument("--rounds", type=int, default=3)
    gpu.add_argument("--minutes", type=float, help="after these no further cell is begun")
    gpu.add_argument("--only", nargs="+", default=[], help="cells whose name has all these words")
    gpu.add_argument("--retry", action="store_true", help="measure cells again that failed")
    kinds.add_parser("demo")
    kinds.add_parser("tables")


def _gate(options: argparse.Namespace) -> dict[str, Any]:
    """A gated call beside tgate 1.0.0's, a plain one and DeepCache's: CPU seconds, speed-up."""
    from tgate_batch.bench.gate import bench_controlnet, bench_gate

    return {**bench_gate(rounds=options.rounds), "sd15 with ControlNet": bench_controlnet()}


def _job(options: argparse.Namespace) -> dict[str, Any]:
    """The whole Ray job's images/s over a bare loop's; two workers' over one's."""
    from tgate_batch.bench.job import bench_job

    return bench_job(options.images, options.steps, options.rounds)


def _orchestration(options: argparse.Namespace) -> dict[str, Any]:
    """Planning, scheduling and writing with a stand-in pipeline: rows/s, the driver's memory."""
    from tgate_batch.bench.orchestration import bench_orchestration

    return bench_orchestration(tuple(options.prompts))


def _engine(options: argparse.Namespace) -> dict[str, Any]:
    """The speed of each engine setting over the defaults, plain and gated."""
    from tgate_batch.bench.engine import bench_engine

    return bench_engine(
        options.model,
        batch=options.batch_size,
        rounds=options.rounds,
        only=None if options.settings is None else tuple(options.settings),
    )


def _padding(options: argparse.Namespace) -> dict[str, Any]:
    """What padded batches cost: the time of some pictures over that without padding."""
    from tgate_batch.bench.padding import bench_padding

    return bench_padding(options.model, options.batch_size, tuple(options.pictures), options.rounds)


def _rows(options: argparse.Namespace) -> dict[str, Any]:
    """Images/s of mixed rows over those of uniform files of the same rows, embedded model."""
    from tgate_batch.bench.rows import bench_rows

    return bench_rows(options.rows)


def _encode(options: argparse.Namespace) -> dict[str, Any]:
    """Picture formats on threads: speed and size beside PNG on one thread."""
    from tgate_batch.bench.encode import bench_encode

    return bench_encode(side=options.side)


def _statistics(options: argparse.Namespace) -> dict[str, Any]:
    """Distances beside pytorch-fid's: memory and time."""
    from tgate_batch.bench.statistics import report

    return report(options.images)


def _scale_scoring(options: argparse.Namespace) -> dict[str, Any]:
    """Scoring of two arms' fabricated measurements under Ray: CPU seconds, memory, differences."""
    from tgate_batch.bench.scale_scoring import bench_scale_scoring

    return bench_scale_scoring(options.rows, options.dimensions, tuple(options.flat_rows))


def _scale_report(options: argparse.Namespace) -> dict[str, Any]:
    """The report of four arms with fabricated pictures: seconds, memory, bytes of the page."""
    from tgate_batch.bench.scale_report import bench_scale_report

    return bench_scale_report(options.prompts, options.side)


def _scale_pool(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds until a large run knows what is missing and sends its first task; its tail."""
    from tgate_batch.bench.scale_pool import bench_scale_pool

    return bench_scale_pool(options.shards, options.prompts, options.milliseconds)


def _coverage(options: argparse.Namespace) -> dict[str, Any]:
    """Simulated runs: how often a 95% interval covers the truth, how often a threshold errs."""
    from tgate_batch.bench.coverage import bench_coverage

    return bench_coverage(options.runs, options.nights)


def _model(options: argparse.Namespace) -> dict[str, Any]:
    """An architecture with random weights on this device: speed-up beside the saving of MACs."""
    from tgate_batch.bench.model import bench_model

    return bench_model(
        options.name,
        mid_size=options.mid_size,
        batch_sizes=tuple(options.batch_sizes),
        steps=options.steps,
        gate_step=options.gate_step,
        rounds=options.rounds,
        compile=options.compile,
        only=None if options.arms is None else tuple(options.arms),
    )


def _gpu(options: argparse.Namespace) -> dict[str, Any]:
    """The GPU table: speed-ups beside their limits, memory, energy, bits, decoding, the job."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler says its every start
    from tgate_batch.bench.gpu import bench_gpu

    return bench_gpu(
        options.size,
        options.cells,
        options.rounds,
        options.minutes,
        tuple(options.only),
        options.retry,
    )


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    """The embedded model's run, whole, as README shows it: what the report says of each arm."""
    from tgate_batch.bench.demo import bench_demo

    return bench_demo()


# Each imports what it needs, and nothing else is loaded. Its docstring says what it measures.
_BENCHMARKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "gate": _gate,
    "job": _job,
    "orchestration": _orchestration,
    "engine": _engine,
    "padding": _padding,
    "rows": _rows,
    "encode": _encode,
    "statistics": _statistics,
    "scale-scoring": _scale_scoring,
    "scale-pool": _scale_pool,
    "scale-report": _scale_report,
    "coverage": _coverage,
    "model": _model,
    "gpu": _gpu,
    "demo": _demo,
}


def run(options: argparse.Namespace) -> int:
    if options.benchmark == "tables":
        return _tables()
    benchmark = _BENCHMARKS[options.benchmark]
    with say.apart():
        say.info(f"bench {options.benchmark}: loading ...", event="phase")
        results = benchmark(options)
    print(json.dumps(results, indent=2))
    if options.output is not None:
        from tgate_batch.bench.record import record

        text = json.dumps(record(benchmark.__doc__ or "", results), indent=2)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 1 if results.get("short") else 0


def _tables() -> int:
    """Writes the documents of this checkout whose figures are not those of the records."""
    from tgate_batch.bench.tables import written

    for page, text in written().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            say.info(f"written: {page}")
    return 0
