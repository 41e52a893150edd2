"""Scoring at scale, on fabricated measurements: CPU time, memory, and figures that stay the same.

Nothing is rendered and no network runs: each arm's rows, one figure a picture and features are
written as a run would have measured them, into a temporary folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tgate_batch import config
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.scoring import concluded
from tgate_batch.metrics.frechet import Statistics
from tgate_batch.output import frozen, layout, parquet
from tgate_batch.output import run as runs
from tgate_batch.output.frozen import ShardPlan
from tgate_batch.output.run import Run
from tgate_batch.score.figures import scores
from tgate_batch.score.measure import features_of
from tgate_batch.score.measurements import Measurements
from tgate_batch.score.reference import Reference, load_reference
from tgate_batch.score.scoring import conclude_orders

SHARD = 4096  # prompts
_METRIC = "prompt_accuracy"


class Fabricated:
    """An extractor that extracts nothing; its "weights" say how many dimensions it has."""

    name = "tgate_batch.bench.scale_scoring:Fabricated"
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
) -> config.Config:
    """Writes a measured run of ``rows`` prompts and two arms; returns its config.

    ``prompts`` and ``by`` are as in a config; without them plain prompts are made.
    """
    if prompts is None:
        file = folder / "prompts.txt"
        file.write_text("".join(f"picture {number}\n" for number in range(rows)), encoding="utf-8")
        prompts = {"path": str(file), "shard_size": shard}
    reference = folder / "reference.npz"
    sample = np.random.default_rng(1).random((reference_rows, dimensions), np.float32)
    with open(reference, "wb") as stream:
        Statistics.of(sample).save(stream, sample=sample)
    settings = {
        "models": ["demo"],
        "prompts": prompts,
        "sampling": {"batch_size": 8},
        "arms": {"baseline": {}, "tgate": {"gate_step": 10}},
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
    runs.begin(run)
    measurements = Measurements.of(run)
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
    ids = [prompt.id for prompt in frozen.load_shard(run.folder, plan).prompts]
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
            "batch": pa.array([f"b{number}" for number in batch]),
            "batch_size": pa.array(np.full(n, 8, np.int32)),
            "batch_seconds": seconds,
            "denoise_seconds": 0.9 * seconds,
            "decode_seconds": 0.1 * seconds,
            "encode_seconds": np.full(n, 0.01),
            "warm_up": np.zeros(n, bool),
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
    run = runs.load_run(settings.output)
    run = Run(settings, run.folder, run.shards, run.ledger)
    measurements = Measurements.of(run)
    measurements = Measurements(
        measurements.extractors,
        tuple(pair for pair in measurements.metrics if pair[0].name == _METRIC),
        (),
    )
    (extractor,) = measurements.extractors.values()
    where = str(settings.score.reference)
    held: Reference = load_reference(where, extractor)
    orders = list(conclude_orders(run, measurements, {extractor.name: held}, settings.score.by))
    problems: dict[str, None] = {}
    if executor is None:
        executor = LocalExecutor(run.config, run.folder)
    found = concluded(run, orders, problems, executor)
    assert not problems, problems
    baseline = found["demo", "baseline"]
    metrics = tuple(metric for metric, _ in measurements.metrics)
    return {
        arm: scores(
            one,
            None if one is baseline else baseline,
            metrics,
            orders[0].extractors,
            {extractor.name: held},
        )
        for (_, arm), one in found.items()
    }
