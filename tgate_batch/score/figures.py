"""Figures of an arm, put together from what was measured of its shards.

``score_model`` reads the measurements and writes each arm's scores.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tgate_batch.metrics.features import Extractor
from tgate_batch.metrics.frechet import Statistics, frechet_distance, rank_deficient, stream
from tgate_batch.metrics.intervals import (
    Interval,
    frechet_change,
    frechet_extrapolation,
    frechet_interval,
    paired_interval,
)
from tgate_batch.metrics.kid import kid
from tgate_batch.metrics.precision_recall import precision_recall
from tgate_batch.metrics.reservoir import Reservoir
from tgate_batch.metrics.throughput import throughput
from tgate_batch.output import history, layout, parquet
from tgate_batch.output.run import Run
from tgate_batch.score.measure import FEATURES, MACS, Key, features_of, keys_of, macs_and_maker
from tgate_batch.score.measurements import Measurements
from tgate_batch.score.reference import Reference

_ERRORS_SHOWN = 20
_SAMPLE = 10_000  # features kept for metrics that need pictures one by one
_LEAST_TO_EXTRAPOLATE = 8  # pictures


def score_model(
    run: Run, measurements: Measurements, reference: Reference | None, model: str
) -> tuple[str, ...]:
    """Writes the scores of a model's arms into the output folder. Reads each measurement once.

    What was not measured is None. Returns the names of measurements that were damaged.
    """
    baseline = None
    damaged: list[str] = []
    if run.config.baseline is not None:
        baseline = ArmMeasures.read(run, measurements, model, run.config.baseline)
    for arm in run.config.arms:
        if baseline is not None and arm == run.config.baseline:
            measured, beside = baseline, None
        else:
            measured, beside = ArmMeasures.read(run, measurements, model, arm), baseline
        scores = _score_arm(run, measurements, reference, measured, beside, model, arm)
        run.folder.write(layout.scores(model, arm), json.dumps(scores, indent=2))
        _save_statistics(run, measurements, measured.statistics, model, arm)
        damaged += measured.damaged
    return tuple(damaged)


def _save_statistics(
    run: Run, measurements: Measurements, statistics: Statistics | None, model: str, arm: str
) -> None:
    if measurements.extractor is None or statistics is None or (statistics.count or 0) < 2:
        return
    with run.folder.create(layout.statistics(measurements.extractor.name, model, arm)) as file:
        statistics.save(file)


def _score_arm(
    run: Run,
    measurements: Measurements,
    reference: Reference | None,
    measured: "ArmMeasures",
    baseline: "ArmMeasures | None",
    model: str,
    arm: str,
) -> dict[str, Any]:
    rows, failed = measured.rows, [row for row in measured.rows if row["status"] != "ok"]
    times = throughput(row for row in rows if row["status"] == "ok")
    return {
        "model": model,
        "arm": arm,
        "images": len(rows) - len(failed),
        "errors": len(failed),
        "error_rows": [
            {key: row[key] for key in ("prompt_id", "image_number", "error")}
            for row in failed[:_ERRORS_SHOWN]
        ],
        "broken": len(measured.broken),
        "broken_rows": measured.broken[:_ERRORS_SHOWN],
        **measured.macs,
        "made_by": measured.made_by,
        "images_per_second_per_worker": times and times.images_per_second_per_worker,
        "batch_seconds_p50": times and times.batch_seconds_p50,
        "batch_seconds_p95": times and times.batch_seconds_p95,
        "seconds_per_image": {
            "denoise": times and times.denoise_seconds_per_image,
            "decode": times and times.decode_seconds_per_image,
            "encode": times and times.encode_seconds_per_image,
        },
        **_distance(measured.statistics, reference, measurements.extractor),
        **_beside_distance(measured, baseline, reference, 100),
        **_figures(measurements, measured, baseline),
    }


@dataclass(frozen=True)
class ArmMeasures:
    """One arm's measurements put together; ``figures``: metric -> picture -> number.

    ``damaged``: files of measurements that could not be read, and are gone now.
    """

    rows: list[dict[str, Any]]  # status and times
    macs: dict[str, float | None]
    made_by: list[dict[str, Any]]  # who drew the pictures, each with how many files
    statistics: Statistics | None
    sample: np.ndarray  # float32 [at most _SAMPLE, d]
    keys: list[Key]  # of the unbroken pictures, in the order of the features
    figures: dict[str, dict[Key, float]]
    broken: list[dict[str, Any]]
    damaged: tuple[str, ...]

    @classmethod
    def read(cls, run: Run, measurements: Measurements, model: str, arm: str) -> "ArmMeasures":
        """Reads the files that exist, shard after shard."""
        held = _Held(run, measurements, model, arm)
        tables = list(held.tables(layout.ROWS))
        rows = [row for table in tables for row in table.to_pylist()]
        sample = Reservoir(_SAMPLE)
        keys: list[Key] = []
        batches = _sampled(sample, keys, map(features_of, held.tables(FEATURES)))
        statistics = stream(batches) if held.has(FEATURES) else None
        figures = {
            metric.name: {
                key: value
                for table in held.tables(metric.name)
                for key, value in _values(table)
                if value is not None
            }
            for metric, _ in measurements.metrics
        }
        broken = [
            {key: row[key] for key in ("prompt_id", "image_number", "broken")}
            for row in rows
            if row["broken"] is not None
        ]
        footers = [dict(macs_and_maker(_footer(table))) for table in tables]
        macs = {key: next((f[key] for f in footers if key in f), None) for key in MACS}
        made_by = history.added_up(f["made_by"] for f in footers if "made_by" in f)
        damaged = tuple(held.damaged)
        return cls(rows, macs, made_by, statistics, sample.rows, keys, figures, broken, damaged)

    def mean(self, metric: str) -> float | None:
        known = list(self.figures[metric].values())
        return float(np.mean(known)) if known else None

    def change(self, metric: str, baseline: "ArmMeasures") -> dict[str, float] | None:
        """Mean difference to the baseline's same pictures, with its 95% bootstrap interval."""
        mine, others = self.figures[metric], baseline.figures[metric]
        both = [key for key in mine if key in others]
        interval = paired_interval(
            np.array([mine[key] for key in both]), np.array([others[key] for key in both])
        )
        return None if interval is None else asdict(interval)


class _Held:
    """The files of one arm's measurements, each read once.

    A damaged one is deleted: it can be measured again.
    """

    def __init__(self, run: Run, measurements: Measurements, model: str, arm: str):
        self.damaged: list[str] = []
        self._folder = run.folder
        self._files: dict[str, list[tuple[str, str]]] = {}  # measurement -> (name, identity)
        if layout.images(model, arm) not in run.ledger:
            return
        for measurement, (folder, settings) in measurements.of_arm(run, model, arm).items():
            present = set(run.folder.names(folder))
            named = ((layout.shard_file(folder, shard.index), shard) for shard in run.shards)
            self._files[measurement] = [
                (name, layout.file_identity(settings, shard.digest))
                for name, shard in named
                if name in present
            ]

    def has(self, measurement: str) -> bool:
        return bool(self._files.get(measurement))

    def tables(self, measurement: str) -> Iterator[pa.Table]:
        """The measurement's tables, in the order of shards."""
        for name, identity in self._files.get(measurement, ()):
            try:
                yield parquet.read_table(self._folder, name, identity=identity)
            except parquet.DAMAGE:
                self.damaged.append(name)
                self._folder.delete(name)


def _footer(table: pa.Table) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def _values(table: pa.Table) -> Iterator[tuple[Key, float | None]]:
    return zip(keys_of(table), table["value"].to_pylist(), strict=True)


def _sampled(
    sample: Reservoir, keys: list[Key], batches: Iterable[tuple[list[Key], np.ndarray]]
) -> Iterator[np.ndarray]:
    for ids, batch in batches:
        keys += ids
        sample.add(batch)
        yield batch


def _distance(
    statistics: Statistics | None, reference: Reference | None, extractor: Extractor | None
) -> dict[str, Any]:
    """Keys ``fid`` or ``fd``, and what the figure is to be read with."""
    none = {"fid": None, "fd": None, "distance_label": None, "distance_note": None}
    if statistics is None or reference is None or extractor is None:
        return none
    if (statistics.count or 0) < 2:
        return none
    value = frechet_distance(statistics, reference.statistics)
    notes = [] if extractor.note is None else [extractor.note]
    if rank_deficient(statistics) or rank_deficient(reference.statistics):
        notes.append(
            f"rank-deficient: {statistics.count} pictures for {extractor.dimensions} dimensions; "
            "compare arms of one run, not runs of other sizes"
        )
    return none | {
        "fid" if extractor.label == "FID" else "fd": value,
        "distance_label": f"{extractor.label}-{statistics.count}",
        "distance_note": "; ".join(notes) or None,
        "reference": {"name": reference.name, "sha256": reference.sha256},
    }


def _beside_distance(
    measured: ArmMeasures,
    baseline: ArmMeasures | None,
    reference: Reference | None,
    replicates: int,
) -> dict[str, Any]:
    """How sure the distance is, its change against the baseline, and what else compares sets.

    None where there is no reference, or no pictures of it; where a run has more pictures than the
    sample holds, there are no intervals.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("distance_interval", "distance_change", "extrapolation", "kid", "precision", "recall")
    )
    if reference is None or measured.statistics is None:
        return found
    mine = measured.sample
    if replicates and len(mine) == len(measured.keys) > 1:
        interval = frechet_interval(mine, reference.statistics, replicates=replicates)
        found["distance_interval"] = asdict(interval)
        if baseline is not None:
            change = _change(measured, baseline, reference, replicates)
            found["distance_change"] = change and asdict(change)
    if len(mine) >= _LEAST_TO_EXTRAPOLATE:
        found["extrapolation"] = asdict(frechet_extrapolation(mine, reference.statistics))
    if reference.sample is not None:
        distance = kid(mine, reference.sample)
        found["kid"] = distance and asdict(distance)
        shares = precision_recall(mine, reference.sample)
        found["precision"], found["recall"] = shares or (None, None)
    return found


def _change(
    measured: ArmMeasures, baseline: ArmMeasures, reference: Reference, replicates: int
) -> Interval | None:
    """The distance less the baseline's, over the pictures that both have."""
    theirs = {key: row for row, key in enumerate(baseline.keys)}
    pairs = [(row, theirs[key]) for row, key in enumerate(measured.keys) if key in theirs]
    if len(pairs) < 2 or len(baseline.sample) != len(baseline.keys):
        return None
    rows, others = map(list, zip(*pairs, strict=True))
    return frechet_change(
        measured.sample[rows], baseline.sample[others], reference.statistics, replicates=replicates
    )


def _figures(
    measurements: Measurements, measured: ArmMeasures, baseline: ArmMeasures | None
) -> dict[str, Any]:
    """Means over pictures: those against the baseline's under ``paired``, the others by name.

    ``change`` holds the others' paired difference to the baseline.
    """
    beside = [metric.name for metric, _ in measurements.metrics if metric.needs_baseline]
    alone = [metric.name for metric, _ in measurements.metrics if not metric.needs_baseline]
    found: dict[str, Any] = {name: measured.mean(name) for name in alone}
    found |= {"paired": None, "change": None}
    if baseline is not None:
        found["paired"] = {name: measured.mean(name) for name in beside}
        found["change"] = {name: measured.change(name, baseline) for name in alone}
    return found
