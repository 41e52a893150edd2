"""Aggregates measured shards into an arm's partial sums, chunk by chunk, and stores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.jackknife import GROUPS, groups
from tgate_batch.metrics.moments import Moments
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output.layout import Settings
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.score import plot_data, registry, row_sums
from tgate_batch.score.partial_sums import (
    NAMED_ROWS,
    ArmSums,
    Chunk,
    FeatureSums,
    add,
    batches_of,
    worst_of,
)
from tgate_batch.score.registry import features_of
from tgate_batch.score.row_sums import ChunkBatches, Positions, ShardRows
from tgate_batch.storage import Folder

VERSION = 3  # raise it when equal measurements result in other sums

Folders = Mapping[str, tuple[str, Settings]]  # measurement -> its folder and its settings
Category = tuple[tuple[str, ...], Any]  # prefix of its keys, its rows (None: all)


@dataclass(frozen=True)
class SumsSource:
    """An arm's measurements, and those of the baseline that they are compared with.

    ``baseline`` is None for the baseline itself and for a run without one. ``dimensions`` are those
    of each extractor. ``grouped`` is True if there are enough images for intervals of a Frechet
    distance.
    """

    model: str
    arm: str
    folders: Folders
    baseline: Folders | None
    dimensions: Mapping[str, int]
    images_per_prompt: int
    batch_size: int
    grouped: bool
    by: str | None = None  # the stored column that figures are broken down by

    def metrics(self) -> list[ImageMetric]:
        """Returns the per-image metrics that were measured."""
        return [metric for metric in registry.METRICS if metric.name in self.folders]

    def settings(self) -> Settings:
        """Returns everything that decides the sums of a shard, as the provenance file has it."""

        def settings_of(folders: Folders) -> dict[str, Settings]:
            return {name: settings for name, (_, settings) in folders.items()}

        baseline = None if self.baseline is None else settings_of(self.baseline)
        return layout.of_sums(settings_of(self.folders), baseline, VERSION) | {
            "images_per_prompt": self.images_per_prompt,
            "batch_size": self.batch_size,
            "by": self.by,
        }

    def identity(self, chunk: Chunk) -> str:
        """Returns a digest of everything that decides a chunk's sums."""
        return identity(self.settings(), chunk)


def identity(settings: Mapping[str, Any], chunk: Chunk) -> str:
    """Returns a digest of an arm's settings and a chunk, which decide the chunk's sums."""
    digests = "".join(shard.digest for shard in chunk.shards)
    return layout.file_identity(settings, f"{chunk.first_prompt} {chunk.first_batch} {digests}")


@dataclass(frozen=True)
class SumOrder:
    """An order to aggregate a full chunk of an arm, and to store its sums."""

    source: SumsSource
    chunk: Chunk


def summary_file(source: SumsSource, chunk: Chunk) -> str:
    """Returns the file of a full chunk's sums."""
    return layout.sums(source.model, source.arm, chunk.index)


def sum_chunk(folder: Folder, order: SumOrder) -> list[str]:
    """Aggregates a full chunk; returns the names of damaged measurements.

    Nothing is stored for a chunk that lacks a file.
    """
    sums, whole = chunk_sums(folder, order.source, order.chunk)
    if whole:
        with folder.create(summary_file(order.source, order.chunk)) as stream:
            sums.save(stream, order.source.identity(order.chunk))
    return sums.damaged


def summaries(
    folder: Folder, source: SumsSource, chunks: tuple[Chunk, ...]
) -> Iterator[tuple[ArmSums, bool]]:
    """Yields the sums of an arm's chunks in order, and True if no file was missing.

    Stored sums are read, the others are computed.
    """
    for chunk in chunks:
        content = folder.get(summary_file(source, chunk)) if chunk.full else None
        stored = None if content is None else ArmSums.load(content, source.identity(chunk))
        yield chunk_sums(folder, source, chunk) if stored is None else (stored, True)


def chunk_sums(folder: Folder, source: SumsSource, chunk: Chunk) -> tuple[ArmSums, bool]:
    """Computes a chunk's sums; also returns True if no file was missing."""
    return _Aggregator(folder, source).aggregate(chunk)


class _Aggregator:
    """Aggregates shards of one arm."""

    def __init__(self, folder: Folder, source: SumsSource):
        self._folder = folder
        self._source = source
        self._groups = GROUPS if source.grouped else 1
        self._sums = ArmSums(
            features={
                name: FeatureSums(dimensions, self._groups)
                for name, dimensions in source.dimensions.items()
                if features_of(name) in source.folders
            }
        )
        self._whole = True

    def aggregate(self, chunk: Chunk) -> tuple[ArmSums, bool]:
        prompt, batch = chunk.first_prompt, chunk.first_batch
        size = (self._source.images_per_prompt, self._source.batch_size)
        total = sum(batches_of(shard, *size) for shard in chunk.shards)
        self._chunk = ChunkBatches(chunk.index, batch, total)
        for shard in chunk.shards:
            self._add_shard(shard, prompt, batch)
            prompt += shard.prompts
            batch += batches_of(shard, *size)
        return self._sums, self._whole

    def _add_shard(self, shard: ShardPlan, prompt: int, batch: int) -> None:
        source, sums = self._source, self._sums.sums
        rows = self._rows(source.folders, shard)
        if rows is None:
            return
        baseline = None if source.baseline is None else self._rows(source.baseline, shard)
        if baseline is not None and not baseline.has_same_images(rows):
            baseline = None
        compared = rows.whole & baseline.whole if baseline else np.zeros(len(rows.whole), bool)
        positions = Positions(prompt + rows.prompt, groups(prompt + rows.prompt), compared)
        self._add_notes(rows)
        add(sums, row_sums.counts(rows, positions))
        add(sums, row_sums.times(rows, batch, source.batch_size, self._chunk))
        categories = self._categories(shard, rows)
        for metric in source.metrics():
            values = self._values(source.folders, metric.name, shard, rows)
            if values is None:
                continue
            others = None
            if baseline is not None and not metric.needs_baseline:
                others = self._values(source.baseline or {}, metric.name, shard, baseline)
            for prefix, chosen in [((), None), *categories]:
                own = values if chosen is None else np.where(chosen, values, np.nan)
                figure = row_sums.figure(metric, own, others, rows, positions)
                add(sums, {(*prefix, *key): value for key, value in figure.items()})
            self._add_changes(metric, values, others, shard, rows, compared)
        for prefix, chosen in categories:
            add(sums, {(*prefix, "prompts"): positions.count_prompts(rows.whole & chosen)})
        for name, features in self._sums.features.items():
            self._add_features(name, features, shard, rows, baseline, positions)

    def _add_changes(
        self,
        metric: ImageMetric,
        values: np.ndarray,
        others: np.ndarray | None,
        shard: ShardPlan,
        rows: ShardRows,
        compared: np.ndarray,
    ) -> None:
        """Adds the histogram of changes, and keeps the most-changed images."""
        if not metric.needs_baseline and others is None:
            return
        changes = values if metric.needs_baseline or others is None else values - others
        changes = np.where(compared, changes, np.nan)
        add(self._sums.sums, plot_data.spread(metric, changes[np.isfinite(changes)]))
        worst = self._sums.worst.get(metric.name, [])
        more = [
            {
                "prompt_id": rows.ids[row].as_py(),
                "image_number": int(rows.number[row]),
                "shard": shard.index,
                "value": change,
                "badness": badness,
            }
            for row, change, badness in plot_data.worst(metric, changes, worst)
        ]
        self._sums.worst[metric.name] = worst_of(worst, more)

    def _categories(self, shard: ShardPlan, rows: ShardRows) -> list[Category]:
        """Returns each value of the column that figures are broken down by, with its rows."""
        if self._source.by is None:
            return []
        values = np.array(prompt_store.categories(self._folder, shard), object)[rows.prompt]
        return [(("by", str(value)), values == value) for value in dict.fromkeys(values)]

    def _add_notes(self, rows: ShardRows) -> None:
        """Adds the failed and the broken rows, the MACs and the provenance."""
        notes = ArmSums(macs=rows.macs, made_by=rows.made_by)
        for listed, chosen, keys in (
            (notes.failed, ~rows.ok, ("error", "error_kind")),
            (notes.broken, rows.ok & ~rows.whole, ("broken",)),
        ):
            if chosen.any():
                table = rows.table.select(["prompt_id", "image_number", *keys])
                listed += table.filter(pa.array(chosen)).to_pylist()[:NAMED_ROWS]
        self._sums.merge(notes)

    def _add_features(
        self,
        name: str,
        sums: FeatureSums,
        shard: ShardPlan,
        rows: ShardRows,
        baseline: ShardRows | None,
        positions: Positions,
    ) -> None:
        whole = rows.whole
        if whole.any():
            features = self._features(self._source.folders, name, shard, rows)
            if features is None:
                return
            group, compared = positions.groups[whole], positions.compared[whole]
            sums.moments.add(features, group)
            images = positions.prompts * self._source.images_per_prompt + rows.number
            sums.sample.add(images[whole], compared, features)
            if self._source.baseline is not None:
                sums.alone = self._added(sums.alone, features[~compared], group[~compared])
        if baseline is not None and (lacking := baseline.whole & ~whole).any():
            features = self._features(self._source.baseline or {}, name, shard, baseline)
            if features is not None:
                sums.baseline_alone = self._added(
                    sums.baseline_alone,
                    features[lacking[baseline.whole]],
                    positions.groups[lacking],
                )

    def _added(
        self, moments: Moments | None, features: np.ndarray, group: np.ndarray
    ) -> Moments | None:
        if not len(features):
            return moments
        moments = moments or Moments(features.shape[1], self._groups)
        moments.add(features, group)
        return moments

    def _rows(self, folders: Folders, shard: ShardPlan) -> ShardRows | None:
        table = self._read(folders, layout.ROWS, shard)
        try:
            return None if table is None else ShardRows(table)
        except (pa.ArrowException, KeyError, TypeError, ValueError):  # not the columns of rows
            self._delete(layout.shard_file(folders[layout.ROWS][0], shard.index))
            return None

    def _values(
        self, folders: Folders, metric: str, shard: ShardPlan, rows: ShardRows
    ) -> np.ndarray | None:
        """A number for each row, NaN for rows without one; None if there is no usable file."""
        table = self._read(folders, metric, shard, ["value"], rows.ok)
        if table is None:
            return None
        values = np.full(len(rows.ok), np.nan)
        values[rows.ok] = table["value"].to_numpy()
        return values

    def _features(
        self, folders: Folders, extractor: str, shard: ShardPlan, rows: ShardRows
    ) -> np.ndarray | None:
        """Features [images that are not broken, d], float32; None if there is no usable file."""
        table = self._read(folders, features_of(extractor), shard, ["features"], rows.whole)
        if table is None:
            return None
        column = table["features"].combine_chunks()
        return column.values.to_numpy(zero_copy_only=False).reshape(len(table), -1)

    def _read(
        self,
        folders: Folders,
        name: str,
        shard: ShardPlan,
        columns: list[str] | None = None,
        rows: np.ndarray | None = None,
    ) -> pa.Table | None:
        """Reads one measurement of a shard; None if it is missing or damaged.

        It is also damaged if it does not have one value for each of ``rows``.
        """
        if name not in folders:
            return None
        where, settings = folders[name]
        file = layout.shard_file(where, shard.index)
        identity = layout.file_identity(settings, shard.digest)
        try:
            table = parquet.read_table(self._folder, file, columns, identity=identity)
        except FileNotFoundError:
            self._whole = False
            self._sums.missing.append(file)
            return None
        except parquet.DAMAGE:
            self._delete(file)
            return None
        if rows is not None and len(table) != rows.sum():
            self._delete(file)
            return None
        return table

    def _delete(self, file: str) -> None:
        """Deletes a damaged measurement, so that it is measured again."""
        self._whole = False
        self._sums.damaged.append(file)
        self._folder.delete(file)
