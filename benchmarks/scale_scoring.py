"""Scoring at scale, on fabricated measurements: CPU time, memory, and figures that stay the same.

Nothing is rendered and no network runs: each arm's rows, one figure a picture and features are
written as a run would have measured them, into a temporary folder.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from tgate_batch import config, console
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.scoring import conclude_arms
from tgate_batch.metrics.frechet import Statistics
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output import run as runs
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Run
from tgate_batch.score.measurement_plan import MeasurementPlan
from tgate_batch.score.reference import load_reference, of_sample
from tgate_batch.score.registry import features_of
from tgate_batch.score.scoring import conclude_orders, write_scores
from tgate_batch.storage import Folder

SHARD = 4096  # prompts
ARMS = {"baseline": {}, "tgate": {"gate_step": 10}}
_METRIC = "prompt_accuracy"


class Fabricated:
    """An extractor that extracts nothing; its "weights" say how many dimensions it has."""

    name = "benchmarks.scale_scoring:Fabricated"
    label = "FD-fabricated"
    note = None
    version = 1
    sha256 = "0" * 64

    def __init__(self, path: str | None = None, device: str = "cpu"):
        self.dimensions = int(path or 64)

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        raise NotImplementedError


def fabricate(
    folder: Path,
    rows: int,
    dimensions: int,
    shard: int = SHARD,
    reference_rows: int = 10_000,
    prompts: dict[str, Any] | None = None,
    by: str | None = None,
    arms: Mapping[str, Any] = ARMS,
) -> config.Config:
    """Writes a measured run of ``rows`` prompts and some arms; returns its config.

    ``prompts``, ``by`` and ``arms`` are as in a config; without them plain prompts are made.
    """
    if prompts is None:
        file = folder / "prompts.txt"
        file.write_text("".join(f"picture {number}\n" for number in range(rows)), encoding="utf-8")
        prompts = {"path": str(file), "shard_size": shard}
    reference = folder / "reference.npz"
    sample = np.random.default_rng(1).random((reference_rows, dimensions), np.float32)
    with open(reference, "wb") as stream:
        Statistics.of(sample).save(stream, **of_sample(sample, "frechet"))
    settings = {
        "models": ["demo"],
        "prompts": prompts,
        "sampling": {"batch_size": 8},
        "arms": dict(arms),
        "workers": {"executor": "local"},
        "score": {
            "reference": str(reference),
            "extractor": Fabricated.name,
            "weights": {Fabricated.name: str(dimensions)},
            "by": by,
        },
        "output": str(folder / "out"),
    }
    run = runs.prepare(config.parse(settings))
    runs.begin_run(run)
    measurements = MeasurementPlan.of(run)
    for arm in run.config.arms:
        wanted = measurements.of_arm(run, "demo", arm)
        names = (layout.ROWS, _METRIC, features_of(Fabricated.name))
        chosen = [wanted[name] for name in names]
        for where, made_of in chosen:
            run.ledger.enter(where, made_of)
        first = 0
        for plan in run.shards:
            tables = _tables(run, plan, arm, first, dimensions)
            for (where, made_of), table in zip(chosen, tables, strict=True):
                identity = layout.file_identity(made_of, plan.digest)
                name = layout.shard_file(where, plan.index)
                parquet.write_table(run.folder, name, table, identity, rows_a_group=SHARD)
            first += plan.prompts
    return run.config


def _tables(
    run: Run, plan: ShardPlan, arm: str, first: int, dimensions: int
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Rows, one figure and features of a shard. The prompts decide them, not the shards."""
    n = plan.prompts
    ids = [prompt.id for prompt in prompt_store.load_shard(run.folder, plan).prompts]
    named = {"prompt_id": pa.array(ids), "image_number": pa.array(np.zeros(n, np.int32))}
    places = np.arange(first, first + n)
    other = 0.0 if arm == run.config.baseline else 0.02
    batch = places // 8
    seconds = 2.0 - 30 * other + 0.1 * np.sin(batch)
    rows = pa.table(
        {
            **named,
            "status": pa.array(["ok"] * n),
            "error": pa.nulls(n, pa.string()),
            "error_kind": pa.nulls(n, pa.string()),
            "batch": pa.array([f"b{number}" for number in batch]),
            "batch_size": pa.array(np.full(n, 8, np.int32)),
            "batch_seconds": seconds,
            "denoise_seconds": 0.9 * seconds,
            "decode_seconds": 0.1 * seconds,
            "encode_seconds": np.full(n, 0.01),
            "warm_up": np.zeros(n, bool),
            "worker": pa.array([f"worker-{number % 2}" for number in batch]),
            "broken": pa.nulls(n, pa.string()),
        }
    )
    value = ((places * 7919) % 100 < 90 + 100 * other).astype(float)
    blocks = [
        _block(block, dimensions, other) for block in range(places[0] // 512, places[-1] // 512 + 1)
    ]
    start = places[0] % 512
    features = np.concatenate(blocks)[start : start + n]
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), dimensions)
    return (
        rows,
        pa.table({**named, "value": value}),
        pa.table({**named, "features": column}),
    )


def _block(number: int, dimensions: int, other: float) -> np.ndarray:
    """Features of 512 prompts."""
    rows = np.random.default_rng(number).random((512, dimensions), np.float32)
    return rows + np.float32(other) * np.roll(rows, 1, axis=1)


def scored(settings: config.Config, executor: Any = None) -> dict[str, dict[str, Any]]:
    """Every score of a run that is measured, by arm."""
    held = runs.load_run(settings.output)
    run = Run(settings, held.folder, held.shards, held.ledger, models=held.models)
    every = MeasurementPlan.of(run)
    known = tuple(pair for pair in every.metrics if pair[0].name == _METRIC)
    measurements = MeasurementPlan(every.extractors, known, ())
    (extractor,) = measurements.extractors.values()
    reference = load_reference(str(settings.score.reference), extractor)
    references = {extractor.name: reference}
    orders = list(conclude_orders(run, measurements, references, settings.score.by))
    problems: dict[str, None] = {}
    found = conclude_arms(run, orders, problems, executor or LocalExecutor(settings, run.folder))
    if problems:
        raise RuntimeError(f"scoring met problems: {list(problems)}")
    write_scores(run, measurements, references, found.arms, measurements.missing)
    return {arm: json.loads(run.folder.read(layout.scores("demo", arm))) for arm in settings.arms}


def bench_scale_scoring(
    rows: int = 1_000_000,
    dimensions: int = 1280,
    flat_rows: tuple[int, ...] = (1_000_000, 10_000_000),
) -> dict[str, Any]:
    """Scores fabricated runs in fresh processes, printing a line each as it goes."""
    results: dict[str, Any] = {"rows": rows, "dimensions": dimensions}
    with tempfile.TemporaryDirectory() as scratch:
        empty = _made(Path(scratch, "empty"), 64, 8)
        base = _scored_apart(empty, workers=1)["driver_mib"]
        console.info(f"an empty run's driver: {base:.0f} MiB")
        console.info(f"fabricating and scoring {rows:,} rows ...", event="phase")
        large = _made(Path(scratch, "large"), rows, dimensions)
        found = {}
        for workers in (1, 2):
            found[workers] = one = _scored_apart(large, workers)
            console.info(
                f"{rows:,} rows x 2 arms, {dimensions} dimensions, {workers} workers: "
                f"{one['seconds']:.0f} s, {one['worker_cpu_seconds']:.0f} CPU seconds of workers, "
                f"{one['driver_cpu_seconds']:.0f} of the driver, whose memory is "
                f"{one['driver_mib'] - base:.0f} MiB above an empty run's; largest worker "
                f"{one['worker_mib']:.0f} MiB"
            )
        apart = _apart(found[1]["scores"], found[2]["scores"])
        results |= {f"workers_{workers}": _without_scores(one) for workers, one in found.items()}
        results["two_workers_cpu_over_one"] = _cpu(found[2]) / _cpu(found[1])
        results["largest_relative_difference"] = apart
        results["driver_mib_above_empty"] = found[2]["driver_mib"] - base
        console.info(
            f"two workers' CPU over one's: {results['two_workers_cpu_over_one']:.3f}; figures "
            f"differ by {apart:.0e} at most"
        )
        shutil.rmtree(Path(scratch, "large"))
        for count in flat_rows:
            console.info(
                f"fabricating and scoring {count:,} rows of 8 dimensions ...", event="phase"
            )
            one = _scored_apart(_made(Path(scratch, str(count)), count, 8), workers=2)
            results[f"driver_mib_above_empty_{count}"] = one["driver_mib"] - base
            console.info(
                f"{count:,} rows, 8 dimensions: the driver's memory is "
                f"{one['driver_mib'] - base:.0f} MiB above an empty run's"
            )
            shutil.rmtree(Path(scratch, str(count)))
    return results


def _made(folder: Path, rows: int, dimensions: int) -> Path:
    """A fabricated run, in a process of its own; returns its config's file."""
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path; from benchmarks import scale_scoring as s; "
        "folder = Path(sys.argv[1]); "
        "made = s.fabricate(folder, int(sys.argv[2]), int(sys.argv[3])); "
        "(folder / 'config.json').write_text(made.model_dump_json())"
    )
    arguments = [sys.executable, "-c", code, str(folder), str(rows), str(dimensions)]
    subprocess.run(arguments, check=True)
    return folder / "config.json"


def _scored_apart(settings: Path, workers: int) -> dict[str, Any]:
    """Scores a run from nothing in a fresh process, with so many workers under Ray."""
    shutil.rmtree(settings.parent / "out" / layout.SUMS, ignore_errors=True)
    arguments = [
        sys.executable,
        "-m",
        "benchmarks.scale_scoring",
        str(settings),
        str(workers),
    ]
    found = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def _cpu(one: dict[str, Any]) -> float:
    return one["worker_cpu_seconds"] + one["driver_cpu_seconds"]


def _without_scores(one: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key != "scores"}


def _apart(one: Any, other: Any) -> float:
    """The largest relative difference of two equal heaps of numbers."""
    if isinstance(one, dict):
        return max((_apart(value, other[key]) for key, value in one.items()), default=0.0)
    if isinstance(one, float):
        return abs(one - other) / max(abs(one), 1e-300)
    if one != other:
        raise RuntimeError(f"{one!r} and {other!r} differ")
    return 0.0


def main() -> None:
    """Scores the run of a config's file; prints what it took, and the scores, as JSON."""
    settings = config.Config.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    workers = int(sys.argv[2])
    limits = settings.workers.model_copy(update={"executor": "ray", "min": workers, "max": workers})
    settings = settings.model_copy(update={"workers": limits})
    from tgate_batch.execute.ray import RayExecutor

    began = time.perf_counter()
    with RayExecutor(settings, Folder(settings.output)) as executor:
        found = scored(settings, executor)
        own = resource.getrusage(resource.RUSAGE_SELF)
        pids = executor.pids()
        result = {
            "seconds": time.perf_counter() - began,
            "worker_cpu_seconds": sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids),
            "driver_cpu_seconds": own.ru_utime + own.ru_stime,
            "driver_mib": own.ru_maxrss / 1024,
            "worker_mib": max(map(_peak_mib, pids)),
            "scores": found,
        }
    print(json.dumps(result))


def _peak_mib(pid: int) -> float:
    """The most memory that a process ever held (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
