"""Measures one shard's images of all arms: features, one number per image and metric, and times.

Each image is decoded once and each feature computed once, a few images of every arm at a time. Each
measurement is a Parquet file with the same ids as the images, so other weights of one metric redo
only that metric.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tgate_batch.errors import UserError, one_line
from tgate_batch.metrics.base import ImageMetric, Measure
from tgate_batch.metrics.broken_images import why_broken
from tgate_batch.metrics.features import Extractor
from tgate_batch.output import layout, parquet
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.records import SCHEMA
from tgate_batch.render.codec import decode_image
from tgate_batch.score.registry import LoadedMetrics, features_of
from tgate_batch.storage import Folder

TIMES = (
    "batch",
    "batch_size",
    "batch_seconds",
    "denoise_seconds",
    "decode_seconds",
    "encode_seconds",
    "warm_up",
    "worker",
)
_READ = ["prompt_id", "image_number", "prompt", "status", "error", "error_kind", "image", *TIMES]
_KEPT = ["prompt_id", "image_number", "status", "error", "error_kind", *TIMES]
ROWS_SCHEMA = pa.schema([*map(SCHEMA.field, _KEPT), ("broken", pa.string())])
FIGURES_SCHEMA = pa.schema([*map(SCHEMA.field, _KEPT[:2]), ("value", pa.float64())])

MACS = ("macs_per_image", "macs_per_image_with_attention")  # keys of an image file's footer

ImageKey = tuple[str, int]  # prompt id, image number


@dataclass(frozen=True)
class ArmOrder:
    """One arm's part of an order: its images, and their missing measurements.

    ``images`` is the file's name and identity; ``files`` has the same for every missing
    measurement: ``rows``, ``features_of`` an extractor, or a metric's name.
    """

    images: tuple[str, str]
    files: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class MeasureOrder:
    """An order to measure a shard of all arms. The baseline is read if a metric needs it.

    ``weights``: measurement -> the sha256 that the worker's weights must have.
    """

    shard: ShardPlan
    arms: Mapping[str, ArmOrder]
    baseline: str | None
    weights: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A worker's report on a measured shard.

    ``damaged``: files that are not as they were written, and why. ``problems``: what could not be
    measured, and why.
    """

    shard: int
    problems: tuple[str, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)


def measure(folder: Folder, order: MeasureOrder, loaded: LoadedMetrics) -> Measured:
    """Computes the order's measurements, and writes their files; skips a damaged arm.

    A metric or extractor with other weights than the order's measures nothing, and is a problem.
    """
    loaded = loaded.promised(order.weights)
    metrics = {metric.name: (metric, call) for metric, call in loaded.measures}
    extractors = {features_of(extractor.name): extractor for extractor in loaded.extractors}
    with ExitStack() as stack:
        arms = _Arms(folder, order, stack)
        tables = {name: _Tables(arm, extractors, metrics) for name, arm in order.arms.items()}
        problems: dict[str, None] = dict.fromkeys(loaded.problems)
        while group := arms.next_group():
            rows = group[order.baseline].rows if order.baseline in group else []
            baselines = {row.key: row.image for row in rows}
            for name, own in group.items():
                try:
                    tables[name].add(own, None if name == order.baseline else baselines)
                except UserError as error:
                    problems[f"{name} shard {order.shard.index} cannot be measured: {error}"] = None
                    arms.whole.discard(name)
        for name, measured in tables.items():
            if name in arms.whole:
                measured.write(folder, arms.footers[name], order.baseline in arms.whole)
    return Measured(order.shard.index, tuple(problems), arms.damaged)


@dataclass(frozen=True)
class _Row:
    """One rendered image."""

    key: ImageKey
    prompt: str
    image: Image.Image
    broken: str | None


@dataclass(frozen=True)
class _Group:
    """A row group: the small columns of all rows, and the rows that have an image."""

    table: pa.Table
    rows: list[_Row]


class _Arms:
    """The arms' files, read in parallel, one row group of each at a time."""

    def __init__(self, folder: Folder, order: MeasureOrder, stack: ExitStack):
        self.whole: set[str] = set()
        self.damaged: dict[str, str] = {}
        self.footers: dict[str, dict[str, str]] = {}
        self._names = {name: arm.images[0] for name, arm in order.arms.items()}
        self._files: dict[str, pq.ParquetFile] = {}
        self._position = 0
        for name, arm in order.arms.items():
            try:
                file = stack.enter_context(parquet.open_table(folder, *arm.images))
                self.footers[name] = parquet.footer(file)
                self._files[name] = file
                self.whole.add(name)
            except parquet.DAMAGE as error:
                self._damage(name, error)

    def next_group(self) -> dict[str, _Group]:
        """Returns each arm's next row group, without damaged arms; empty at the end."""
        groups = {}
        for name in list(self.whole):
            file = self._files[name]
            if self._position >= file.num_row_groups:
                continue
            try:
                groups[name] = _group(file.read_row_group(self._position, columns=_READ))
            except (*parquet.DAMAGE, UserError) as error:
                self._damage(name, error)
        self._position += 1
        return groups

    def _damage(self, name: str, error: Exception) -> None:
        self.whole.discard(name)
        self.damaged[self._names[name]] = one_line(error)


def _group(table: pa.Table) -> _Group:
    rows = []
    for row in table.select(["prompt_id", "image_number", "prompt", "status", "image"]).to_pylist():
        if row["status"] == "ok":
            key = (row["prompt_id"], row["image_number"])
            image = decode_image(row["image"]["bytes"])
            rows.append(_Row(key, row["prompt"], image, why_broken(image)))
    return _Group(table.select(_KEPT), rows)


class _Tables:
    """One arm's measurements, group after group."""

    def __init__(
        self,
        order: ArmOrder,
        extractors: Mapping[str, Extractor],
        metrics: Mapping[str, tuple[ImageMetric, Measure]],
    ):
        self._order = order
        self._extractors = {name: extractors[name] for name in order.files if name in extractors}
        self._metrics = {name: metrics[name] for name in order.files if name in metrics}
        self._parts: dict[str, list[pa.Table]] = {name: [] for name in order.files}

    def add(self, group: _Group, baselines: Mapping[ImageKey, Image.Image] | None) -> None:
        """Measures a group; ``baselines`` is None for the baseline itself."""
        rows = group.rows
        if layout.ROWS in self._parts:
            why = {row.key: row.broken for row in rows}
            keys = zip(
                group.table["prompt_id"].to_pylist(),
                group.table["image_number"].to_pylist(),
                strict=True,
            )
            column = pa.array([why.get(key) for key in keys], pa.string())
            self._parts[layout.ROWS].append(group.table.append_column("broken", column))
        for name, extractor in self._extractors.items():
            whole = [row for row in rows if row.broken is None]
            self._parts[name].append(_features(whole, extractor))
        for name, (metric, call) in self._metrics.items():
            self._parts[name].append(_figures(rows, metric, call, baselines))

    def write(self, folder: Folder, footer: Mapping[str, str], baseline_is_whole: bool) -> None:
        """Writes the measurements, without those that compare with a damaged baseline."""
        for name, (file, identity) in self._order.files.items():
            parts = self._parts[name]
            paired = name in self._metrics and self._metrics[name][0].needs_baseline
            if not parts or (paired and not baseline_is_whole):
                continue
            about = {}
            if name == layout.ROWS:  # so that aggregation need not open the images' files
                about = {key: footer[key] for key in (*MACS, "made_by") if key in footer}
            table = pa.concat_tables(parts).replace_schema_metadata(None)
            parquet.write_table(folder, file, table, identity, about, rows_a_group=4096)


def _ids(rows: list[_Row]) -> dict[str, pa.Array]:
    return {
        "prompt_id": pa.array([row.key[0] for row in rows], pa.string()),
        "image_number": pa.array([row.key[1] for row in rows], pa.int32()),
    }


def _features(rows: list[_Row], extractor: Extractor) -> pa.Table:
    """Columns prompt_id, image_number, features (float32 [dimensions]) of unbroken images."""
    values = extractor([row.image for row in rows]) if rows else np.empty((0, 0))
    flat = pa.array(values.astype(np.float32).ravel())
    features = pa.FixedSizeListArray.from_arrays(flat, extractor.dimensions)
    return pa.table({**_ids(rows), "features": features})


def _figures(
    rows: list[_Row],
    metric: ImageMetric,
    call: Callable[..., Any],
    baselines: Mapping[ImageKey, Image.Image] | None,
) -> pa.Table:
    """Columns prompt_id, image_number, value: null if the metric does not apply to the image."""
    known = baselines or {}
    chosen = [i for i, row in enumerate(rows) if not metric.needs_baseline or row.key in known]
    figures = np.full(len(rows), np.nan)
    if chosen:
        others = [known[rows[i].key] for i in chosen] if metric.needs_baseline else None
        images = [rows[i].image for i in chosen]
        figures[chosen] = call(images, [rows[i].prompt for i in chosen], others)
    value = pa.array(figures, pa.float64(), mask=~np.isfinite(figures))
    return pa.table({**_ids(rows), "value": value})
