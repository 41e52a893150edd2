"""What the pictures of each arm are worth: measured shard by shard, then put together.

``measure_shard`` may run anywhere and writes a file a shard; ``score_arm`` reads those files and
the rows, and writes ``scores/model=<m>/arm=<a>.json``.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tgate_batch.demo.accuracy import PromptAccuracy
from tgate_batch.demo.pictures import parse
from tgate_batch.errors import UserError
from tgate_batch.metrics.clip import ClipScore
from tgate_batch.metrics.entry import PictureMetric
from tgate_batch.metrics.features import Extractor, load_extractor
from tgate_batch.metrics.frechet import Statistics, frechet_distance, rank_deficient, stream
from tgate_batch.metrics.intervals import (
    Interval,
    frechet_change,
    frechet_extrapolation,
    frechet_interval,
    paired_interval,
)
from tgate_batch.metrics.kid import kid
from tgate_batch.metrics.lpips import Lpips
from tgate_batch.metrics.precision_recall import precision_recall
from tgate_batch.metrics.psnr import Psnr
from tgate_batch.metrics.reservoir import Reservoir
from tgate_batch.metrics.ssim import Ssim
from tgate_batch.metrics.throughput import throughput
from tgate_batch.output import parquet
from tgate_batch.output.run import Run
from tgate_batch.prompts.read import ShardPlan
from tgate_batch.report.summary import score_name
from tgate_batch.score import measure
from tgate_batch.score.reference import Reference, drawn_reference, load_reference

_ERRORS_SHOWN = 20
_SAMPLE = 10_000  # features kept for metrics that need pictures one by one
_LEAST_TO_EXTRAPOLATE = 8  # pictures
_TIMES = [
    "batch",
    "batch_size",
    "batch_seconds",
    "denoise_seconds",
    "decode_seconds",
    "encode_seconds",
    "warm_up",
]

Standing = Mapping[tuple[str, str], list[ShardPlan]]  # (model, arm) -> its shards that stand


@dataclass(frozen=True)
class Asked:
    """What a run wants measured of every picture; ``problems``: why some of it cannot be."""

    extractor: Extractor | None
    metrics: tuple[PictureMetric, ...]
    problems: tuple[str, ...]


def asked(run: Run) -> Asked:
    """Loads the run's extractor and metrics; one that cannot be had is a problem, not the end."""
    wanted = run.config.score
    device = "cuda" if run.config.workers.gpus_each and torch.cuda.is_available() else "cpu"
    problems: list[str] = []

    def loaded(load: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return load(*arguments, device)
        except UserError as error:
            problems.append(str(error))
            return None

    extractor = None
    if wanted.reference is not None:
        extractor = loaded(load_extractor, wanted.extractor, wanted.weights.get("extractor"))
    metrics: list[PictureMetric] = [PromptAccuracy()]
    if run.config.baseline is not None:
        metrics += [Psnr(), Ssim()]
        if "lpips" in wanted.weights:
            metrics.append(loaded(Lpips, wanted.weights["lpips"]))
    if "clip" in wanted.weights:
        metrics.append(loaded(ClipScore, wanted.weights["clip"]))
    return Asked(extractor, tuple(filter(None, metrics)), tuple(problems))


def statistics_name(extractor: str, model: str, arm: str) -> str:
    """Where an arm's ``mu`` and ``sigma`` lie, as pytorch-fid reads them."""
    return f"features/extractor={extractor}/model={model}/arm={arm}.npz"


def measure_shard(run: Run, asked: Asked, model: str, arm: str, shard: ShardPlan) -> str | None:
    """Measures one shard and writes its file, unless it stands; returns why it could not."""
    baseline = run.config.baseline
    name = measure.features_name(_folder_name(asked.extractor), model, arm, shard.index)
    digest = measure.digest(shard.digest, asked.extractor, asked.metrics, baseline)
    if parquet.is_done(run.folder, name, digest):
        return None
    try:
        table = measure.measure(
            run.folder, model, arm, shard.index, asked.extractor, asked.metrics, baseline
        )
    except (pa.ArrowException, OSError, UserError) as error:
        reason = " ".join(str(error).split())
        return f"{model} {arm} shard {shard.index} cannot be measured: {reason}"
    parquet.write_table(run.folder, name, table, digest)
    return None


def reference(run: Run, asked: Asked, standing: Standing) -> Reference | None:
    """The reference set's statistics under the run's extractor; raises UserError."""
    where = run.config.score.reference
    if where is None or asked.extractor is None:
        return None
    if where != "drawn":
        return load_reference(where, asked.extractor)
    model, arm = run.config.models[0].name, next(iter(run.config.arms))
    rows = _rows(run, model, arm, standing[model, arm], ["prompt"])
    texts = [row["prompt"] for row in rows]
    if not all(parse(text) for text in texts):
        return None  # no drawings exist of what lies outside the grammar
    return drawn_reference(texts, asked.extractor)


def score_arm(
    run: Run, asked: Asked, reference: Reference | None, standing: Standing, model: str, arm: str
) -> dict[str, Any]:
    """One arm's scores, also written into the output folder; None where not measured."""
    done = standing[model, arm]
    columns = ["prompt_id", "image_number", "status", "error", *_TIMES]
    rows = list(_rows(run, model, arm, done, columns))
    measured, baseline = _Measured.read(run, asked, model, arm, done), None
    if run.config.baseline not in (None, arm):
        rendered = standing[model, run.config.baseline]
        baseline = _Measured.read(run, asked, model, run.config.baseline, rendered)
    failed = [row for row in rows if row["status"] != "ok"]
    times = throughput(row for row in rows if row["status"] == "ok")
    scores = {
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
        **_macs(run, model, arm, done),
        "images_per_second_per_worker": times and times.images_per_second_per_worker,
        "batch_seconds_p50": times and times.batch_seconds_p50,
        "batch_seconds_p95": times and times.batch_seconds_p95,
        "seconds_per_image": {
            "denoise": times and times.denoise_seconds_per_image,
            "decode": times and times.decode_seconds_per_image,
            "encode": times and times.encode_seconds_per_image,
        },
        **_distance(measured.statistics, reference, asked.extractor),
        **_beside_distance(measured, baseline, reference, run.config.score.bootstrap),
        **_figures(asked, measured, baseline),
    }
    if measured.statistics is not None and measured.statistics.count > 1:
        with run.folder.create(statistics_name(_folder_name(asked.extractor), model, arm)) as file:
            measured.statistics.save(file)
    run.folder.write(score_name(model, arm), json.dumps(scores, indent=2))
    return scores


@dataclass(frozen=True)
class _Measured:
    """One arm's measured shards put together; ``figures``: metric -> picture -> number."""

    statistics: Statistics | None
    sample: np.ndarray  # float32 [at most _SAMPLE, d]
    keys: list[measure.Key]  # of the unbroken pictures, in the order of the features
    figures: dict[str, dict[measure.Key, float]]
    broken: list[dict[str, Any]]

    @classmethod
    def read(
        cls, run: Run, asked: Asked, model: str, arm: str, shards: list[ShardPlan]
    ) -> "_Measured":
        names = [
            measure.features_name(_folder_name(asked.extractor), model, arm, shard.index)
            for shard in shards
        ]
        tables = [name for name in names if run.folder.exists(name)]
        metrics = [metric.name for metric in asked.metrics]
        light = ["prompt_id", "image_number", "broken", *metrics]
        rows = [row for name in tables for row in _read(run, name, light).to_pylist()]
        sample = Reservoir(_SAMPLE)
        statistics = None
        if asked.extractor is not None and tables:
            statistics = stream(_sampled(sample, (_features(run, name) for name in tables)))
        figures = {
            metric: {
                (row["prompt_id"], row["image_number"]): row[metric]
                for row in rows
                if row[metric] is not None
            }
            for metric in metrics
        }
        broken = [
            {key: row[key] for key in ("prompt_id", "image_number", "broken")}
            for row in rows
            if row["broken"] is not None
        ]
        keys = [(row["prompt_id"], row["image_number"]) for row in rows if row["broken"] is None]
        return cls(statistics, sample.rows, keys, figures, broken)

    def mean(self, metric: str) -> float | None:
        known = list(self.figures[metric].values())
        return float(np.mean(known)) if known else None

    def change(self, metric: str, baseline: "_Measured") -> dict[str, float] | None:
        """Mean difference to the baseline's same pictures, with its 95% bootstrap interval."""
        mine, others = self.figures[metric], baseline.figures[metric]
        both = [key for key in mine if key in others]
        interval = paired_interval(
            np.array([mine[key] for key in both]), np.array([others[key] for key in both])
        )
        return None if interval is None else asdict(interval)


def _sampled(sample: Reservoir, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for batch in batches:
        sample.add(batch)
        yield batch


def _distance(
    statistics: Statistics | None, reference: Reference | None, extractor: Extractor | None
) -> dict[str, Any]:
    """Keys ``fid`` or ``fd``, and what the figure is to be read with."""
    none = {"fid": None, "fd": None, "distance_label": None, "distance_note": None}
    if statistics is None or reference is None or extractor is None or statistics.count < 2:
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
    measured: _Measured,
    baseline: _Measured | None,
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
    if reference.features is not None:
        distance = kid(mine, reference.features)
        found["kid"] = distance and asdict(distance)
        shares = precision_recall(mine, reference.features)
        found["precision"], found["recall"] = shares or (None, None)
    return found


def _change(
    measured: _Measured, baseline: _Measured, reference: Reference, replicates: int
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


def _figures(asked: Asked, measured: _Measured, baseline: _Measured | None) -> dict[str, Any]:
    """Means over pictures: those against the baseline's under ``paired``, the others by name.

    ``change`` holds the others' paired difference to the baseline.
    """
    beside = [metric.name for metric in asked.metrics if metric.needs_baseline]
    alone = [metric.name for metric in asked.metrics if not metric.needs_baseline]
    found: dict[str, Any] = {name: measured.mean(name) for name in alone}
    found |= {"paired": None, "change": None}
    if baseline is not None:
        found["paired"] = {name: measured.mean(name) for name in beside}
        found["change"] = {name: measured.change(name, baseline) for name in alone}
    return found


def _folder_name(extractor: Extractor | None) -> str:
    """The extractor's name as a folder: its own may be a dotted import."""
    return "none" if extractor is None else extractor.name.replace("/", "-").replace(":", "-")


def _macs(run: Run, model: str, arm: str, done: list[ShardPlan]) -> dict[str, float | None]:
    """MACs of one image, as the arm's files carry them."""
    keys = ("macs_per_image", "macs_per_image_with_attention")
    if not done:
        return dict.fromkeys(keys)
    about = parquet.read_metadata(run.folder, parquet.images_name(model, arm, done[0].index))
    return {key: json.loads(about.get(key, "null")) for key in keys}


def _rows(
    run: Run, model: str, arm: str, shards: list[ShardPlan], columns: list[str]
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        name = parquet.images_name(model, arm, shard.index)
        yield from _read(run, name, columns).to_pylist()


def _read(run: Run, name: str, columns: list[str]) -> pa.Table:
    return parquet.read_table(run.folder, name, columns)


def _features(run: Run, name: str) -> np.ndarray:
    """float32 [n, d] of one shard's unbroken pictures."""
    table = _read(run, name, ["broken", "features"])
    column = table["features"].combine_chunks()
    whole = column.values.to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return whole[np.array(table["broken"].is_null())]
