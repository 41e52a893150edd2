"""Measured shards -> sums: columns of Arrow, shard after shard, never a row in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tgate_batch.metrics import throughput
from tgate_batch.metrics.base import PictureMetric
from tgate_batch.metrics.jackknife import GROUPS, groups
from tgate_batch.metrics.moments import Moments
from tgate_batch.output import layout, parquet, prompt_store, shapes
from tgate_batch.output.layout import Settings
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.score import plot_data, registry
from tgate_batch.score.measure import MACS
from tgate_batch.score.partial_sums import (
    ArmSums,
    Chunk,
    FeatureSums,
    Sums,
    add,
    batches_of,
    by_group,
    worst_of,
)
from tgate_batch.score.registry import features_of
from tgate_batch.storage import Folder

VERSION = 3  # raised by hand when equal measurements get other sums

Folders = Mapping[str, tuple[str, Settings]]  # measurement -> its folder, what decides its content


@dataclass(frozen=True)
class SumsSource:
    """An arm's measurements, and the baseline's beside which they are read.

    ``baseline`` is None for the baseline itself, and without one. ``dimensions``: of each
    extractor. ``grouped``: whether there are images enough for intervals of a Frechet distance.
    """

    model: str
    arm: str
    folders: Folders
    baseline: Folders | None
    dimensions: Mapping[str, int]
    images_per_prompt: int
    batch_size: int
    grouped: bool
    by: str | None = None  # the frozen column that figures are broken down by

    def metrics(self) -> list[PictureMetric]:
        """The metrics of single images that were measured."""
        return [metric for metric in registry.METRICS if metric.name in self.folders]

    def settings(self) -> Settings:
        """What decides the sums of a shard, as the ledger keeps it."""
        return layout.of_sums(
            {name: made for name, (_, made) in self.folders.items()},
            None
            if self.baseline is None
            else {name: made for name, (_, made) in self.baseline.items()},
            VERSION,
        ) | {
            "images_per_prompt": self.images_per_prompt,
            "batch_size": self.batch_size,
            "by": self.by,
        }

    def identity(self, chunk: Chunk) -> str:
        """What a chunk's summary is made of, as one digest."""
        return identity(self.settings(), chunk)


def identity(settings: Mapping[str, Any], chunk: Chunk) -> str:
    """What a summary is made of: the settings of an arm's sums, and the chunk."""
    digests = "".join(shard.digest for shard in chunk.shards)
    return layout.file_identity(settings, f"{chunk.first_prompt} {chunk.first_batch} {digests}")


@dataclass(frozen=True)
class SumOrder:
    """A full chunk of an arm, to be added up and kept."""

    source: SumsSource
    chunk: Chunk


def summary_file(source: SumsSource, chunk: Chunk) -> str:
    """The file of a full chunk's summary."""
    return layout.sums(source.model, source.arm, chunk.index)


def sum_chunk(folder: Folder, order: SumOrder) -> list[str]:
    """Adds a full chunk up and keeps its summary; returns measurements that were damaged.

    Nothing is kept of a chunk that lacks a file.
    """
    summary, whole = chunk_sums(folder, order.source, order.chunk)
    if whole:
        with folder.create(summary_file(order.source, order.chunk)) as stream:
            summary.save(stream, order.source.identity(order.chunk))
    return summary.damaged


def summaries(
    folder: Folder, source: SumsSource, chosen: tuple[Chunk, ...]
) -> Iterator[tuple[ArmSums, bool]]:
    """The summaries of an arm's chunks in order, each with whether every file of it was there.

    Those that are kept are read, the others added up.
    """
    for chunk in chosen:
        content = folder.get(summary_file(source, chunk)) if chunk.full else None
        kept = None if content is None else ArmSums.load(content, source.identity(chunk))
        yield chunk_sums(folder, source, chunk) if kept is None else (kept, True)


def chunk_sums(folder: Folder, source: SumsSource, chunk: Chunk) -> tuple[ArmSums, bool]:
    """A chunk's summary, and whether every file of it was there."""
    return _Adding(folder, source).chunk(chunk)


class _Adding:
    """Adds shards of one arm up."""

    def __init__(self, folder: Folder, source: SumsSource):
        self._folder = folder
        self._source = source
        self._groups = GROUPS if source.grouped else 1
        self._found = ArmSums(
            features={
                name: FeatureSums(dimensions, self._groups)
                for name, dimensions in source.dimensions.items()
                if features_of(name) in source.folders
            }
        )
        self._whole = True

    def chunk(self, chunk: Chunk) -> tuple[ArmSums, bool]:
        prompt, batch = chunk.first_prompt, chunk.first_batch
        images, size = self._source.images_per_prompt, self._source.batch_size
        self._slices = _Slices(
            chunk.index, batch, sum(batches_of(shard, images, size) for shard in chunk.shards)
        )
        for shard in chunk.shards:
            self._shard(shard, prompt, batch)
            prompt += shard.prompts
            batch += batches_of(shard, images, size)
        return self._found, self._whole

    def _shard(self, shard: ShardPlan, prompt: int, batch: int) -> None:
        source = self._source
        mine = self._rows(source.folders, shard)
        if mine is None:
            return
        beside = None if source.baseline is None else self._rows(source.baseline, shard)
        if beside is not None and not beside.is_of_same_pictures(mine):
            beside = None
        compared = mine.whole & beside.whole if beside else np.zeros(len(mine.whole), bool)
        place = _Place(prompt + mine.prompt, groups(prompt + mine.prompt), compared)
        self._say(mine)
        add(self._found.sums, _counts(mine, place))
        add(self._found.sums, _times(mine, batch, source.batch_size, self._slices))
        categories: list[tuple[tuple[str, ...], Any]] = [((), None)]
        if source.by is not None:
            categories += self._categories(shard, mine)
        for metric in source.metrics():
            values = self._values(source.folders, metric.name, shard, mine)
            if values is None:
                continue
            others = None
            if beside is not None and not metric.needs_baseline:
                others = self._values(source.baseline or {}, metric.name, shard, beside)
            for prefix, chosen in categories:
                kept = values if chosen is None else np.where(chosen, values, np.nan)
                sums = _figure(metric, kept, others, mine, place)
                add(self._found.sums, {(*prefix, *key): value for key, value in sums.items()})
            self._changed(metric, values, others, shard, mine, place)
        for prefix, chosen in categories[1:]:
            key = (*prefix, "prompts")
            add(self._found.sums, {key: _prompts(place, mine.whole & chosen)})
        for name, features in self._found.features.items():
            self._features(name, features, shard, mine, beside, place)

    def _changed(
        self,
        metric: PictureMetric,
        values: np.ndarray,
        others: np.ndarray | None,
        shard: ShardPlan,
        mine: _Rows,
        place: _Place,
    ) -> None:
        """Adds the change histogram, and keeps the most-changed images."""
        if not metric.needs_baseline and others is None:
            return
        changes = values if metric.needs_baseline or others is None else values - others
        changes = np.where(place.compared, changes, np.nan)
        add(self._found.sums, plot_data.spread(metric, changes[np.isfinite(changes)]))
        held = self._found.worst.get(metric.name, [])
        found = [
            {
                "prompt_id": mine.ids[row].as_py(),
                "image_number": int(mine.number[row]),
                "shard": shard.index,
                "value": change,
                "badness": badness,
            }
            for row, change, badness in plot_data.worst(metric, changes, held)
        ]
        self._found.worst[metric.name] = worst_of(held, found)

    def _categories(self, shard: ShardPlan, mine: _Rows) -> list[tuple[tuple[str, ...], Any]]:
        """The values of the column, and which rows have each."""
        values = np.array(prompt_store.categories(self._folder, shard), object)[mine.prompt]
        return [(("by", str(value)), values == value) for value in dict.fromkeys(values)]

    def _say(self, rows: _Rows) -> None:
        """Records the failed and the broken rows."""
        named = ArmSums(macs=rows.macs, made_by=rows.made_by)
        for status, chosen, keys in (
            (named.failed, ~rows.ok, ("error", "error_kind")),
            (named.broken, rows.ok & ~rows.whole, ("broken",)),
        ):
            if chosen.any():
                columns = ["prompt_id", "image_number", *keys]
                status += rows.table.select(columns).filter(pa.array(chosen)).to_pylist()[:20]
        self._found.merge(named)

    def _features(
        self,
        name: str,
        sums: FeatureSums,
        shard: ShardPlan,
        mine: _Rows,
        beside: _Rows | None,
        place: _Place,
    ) -> None:
        whole = mine.whole
        if whole.any():
            rows = self._feature_rows(self._source.folders, name, shard, mine)
            if rows is None:
                return
            sums.moments.add(rows, place.groups[whole])
            pictures = place.prompts * self._source.images_per_prompt + mine.number
            sums.sample.add(pictures[whole], place.compared[whole], rows)
            if self._source.baseline is not None:
                alone = ~place.compared[whole]
                sums.alone = self._more(sums.alone, rows[alone], place.groups[whole][alone])
        if beside is not None and (lacking := beside.whole & ~whole).any():
            rows = self._feature_rows(self._source.baseline or {}, name, shard, beside)
            if rows is not None:
                chosen = lacking[beside.whole]
                sums.baseline_alone = self._more(
                    sums.baseline_alone, rows[chosen], place.groups[lacking]
                )

    def _more(self, held: Moments | None, rows: np.ndarray, chosen: np.ndarray) -> Moments | None:
        if not len(rows):
            return held
        held = held or Moments(rows.shape[1], self._groups)
        held.add(rows, chosen)
        return held

    def _rows(self, folders: Folders, shard: ShardPlan) -> _Rows | None:
        table = self._read(folders, layout.ROWS, shard)
        try:
            return None if table is None else _Rows(table)
        except (pa.ArrowException, KeyError, TypeError, ValueError):  # not the columns of rows
            self._drop(layout.shard_file(folders[layout.ROWS][0], shard.index))
            return None

    def _values(
        self, folders: Folders, metric: str, shard: ShardPlan, rows: _Rows
    ) -> np.ndarray | None:
        """One number a row, NaN where there is none."""
        table = self._read(folders, metric, shard, ["value"])
        if table is None or not self._fits(table, rows.ok, folders, metric, shard):
            return None
        values = np.full(len(rows.ok), np.nan)
        values[rows.ok] = table["value"].to_numpy()
        return values

    def _feature_rows(
        self, folders: Folders, extractor: str, shard: ShardPlan, rows: _Rows
    ) -> np.ndarray | None:
        """float32 [images that are whole, d]."""
        name = features_of(extractor)
        table = self._read(folders, name, shard, ["features"])
        if table is None or not self._fits(table, rows.whole, folders, name, shard):
            return None
        column = table["features"].combine_chunks()
        return column.values.to_numpy(zero_copy_only=False).reshape(len(table), -1)

    def _fits(
        self, table: pa.Table, rows: np.ndarray, folders: Folders, name: str, shard: ShardPlan
    ) -> bool:
        """Whether a measurement has a value for each of these rows; drops it where it has not."""
        if len(table) == rows.sum():
            return True
        self._drop(layout.shard_file(folders[name][0], shard.index))
        return False

    def _read(
        self, folders: Folders, name: str, shard: ShardPlan, columns: list[str] | None = None
    ) -> pa.Table | None:
        """One measurement of a shard; None where there is none."""
        if name not in folders:
            return None
        where, settings = folders[name]
        file = layout.shard_file(where, shard.index)
        identity = layout.file_identity(settings, shard.digest)
        try:
            return parquet.read_table(self._folder, file, columns, identity=identity)
        except FileNotFoundError:
            self._whole = False
            self._found.missing.append(file)
        except parquet.DAMAGE:
            self._drop(file)
        return None

    def _drop(self, file: str) -> None:
        """Deletes a damaged measurement, so that it is measured again."""
        self._whole = False
        self._found.damaged.append(file)
        self._folder.delete(file)


@dataclass(frozen=True)
class _Place:
    """Where each row's prompt stands in the set, its group, and whether the baseline has it too."""

    prompts: np.ndarray
    groups: np.ndarray
    compared: np.ndarray


class _Slices(NamedTuple):
    """A chunk whose course is followed: its number, its first batch, how many it has."""

    chunk: int
    first_batch: int
    batches: int


class _Rows:
    """A shard's rows of one arm, as columns."""

    def __init__(self, table: pa.Table):
        self.table = table
        self.ids = table["prompt_id"].combine_chunks()
        self.number = table["image_number"].to_numpy().astype(np.int64)
        self.prompt = self.ids.dictionary_encode().indices.to_numpy().astype(np.int64)
        self.ok = pc.equal(table["status"], "ok").to_numpy(zero_copy_only=False)
        self.whole = self.ok & table["broken"].is_null().to_numpy(zero_copy_only=False)
        footer = shapes.of_rows(parquet.footer_of(table.schema.metadata or {}), MACS)
        known = {key: footer[key] for key in MACS if footer.get(key) is not None}
        self.macs = {key: {str(value): len(table)} for key, value in known.items()}
        self.made_by = [footer["made_by"]] if "made_by" in footer else []

    def is_of_same_pictures(self, other: _Rows) -> bool:
        same = len(self.ids) == len(other.ids) and self.ids.equals(other.ids)
        return same and bool((self.number == other.number).all())

    @property
    def workers(self) -> np.ndarray:
        return self.table["worker"].to_numpy()

    def seconds(self, stage: str) -> np.ndarray:
        return self.table[f"{stage}_seconds"].to_numpy().astype(np.float64)


def _prompts(place: _Place, chosen: np.ndarray) -> np.ndarray:
    """How many prompts of each group have such a row."""
    _, first = np.unique(place.prompts[chosen], return_index=True)
    return by_group(place.groups[chosen][first])


def _counts(rows: _Rows, place: _Place) -> Sums:
    failed = rows.table.filter(pa.array(~rows.ok))["error_kind"].value_counts().to_pylist()
    return {
        **{("failed", str(kind["values"])): np.asarray(kind["counts"]) for kind in failed},
        ("images",): np.asarray(rows.ok.sum()),
        ("errors",): np.asarray((~rows.ok).sum()),
        ("broken",): np.asarray((rows.ok & ~rows.whole).sum()),
        ("prompts",): _prompts(place, rows.whole),
        ("prompts compared",): _prompts(place, place.compared),
    }


def _times(rows: _Rows, first_batch: int, batch_size: int, slices: _Slices) -> Sums:
    """Sums over groups of batches. A batch has the same place in every arm, halved or not."""
    number = rows.table["batch"].combine_chunks().dictionary_encode().indices
    batches = throughput.Batches.of(
        np.where(rows.ok, number.fill_null(-1).to_numpy(), -1),
        rows.seconds("batch"),
        rows.seconds("denoise"),
        rows.seconds("decode"),
        rows.table["warm_up"].fill_null(False).to_numpy(zero_copy_only=False),
    )
    counted = ~batches.warm_up
    places = first_batch + batches.first_row // batch_size
    where = groups(places)[counted]
    found: Sums = {
        ("device seconds",): np.asarray(batches.seconds.sum()),
        ("time", "images"): by_group(where, batches.images[counted]),
        ("time", "seconds"): by_group(where, batches.seconds[counted]),
        ("time", "batches"): by_group(where),
        ("latency",): throughput.histogram(batches.seconds[counted]),
        **plot_data.course(batches, places - slices.first_batch, slices.chunk, slices.batches),
        **plot_data.by_worker(batches, rows.workers),
    }
    for stage, seconds in (
        ("denoise", batches.denoise_seconds),
        ("decode", batches.decode_seconds),
    ):
        known = counted & np.isfinite(seconds)
        found["stage", stage, "seconds"] = np.asarray(seconds[known].sum())
        found["stage", stage, "images"] = np.asarray(float(batches.images[known].sum()))
    encode = rows.seconds("encode")
    found["stage", "encode", "seconds"] = np.asarray(np.nansum(encode))
    found["stage", "encode", "images"] = np.asarray(float(np.isfinite(encode).sum()))
    return found


def _figure(
    metric: PictureMetric,
    values: np.ndarray,
    others: np.ndarray | None,
    rows: _Rows,
    place: _Place,
) -> Sums:
    """A figure's sums over its images, and of its change over those that both arms have."""
    name = metric.name
    known = np.isfinite(values) & (place.compared if metric.needs_baseline else rows.whole)
    found: Sums = {
        ("figure", name, "count"): by_group(place.groups[known]),
        ("figure", name, "sum"): by_group(place.groups[known], values[known]),
    }
    if others is not None:
        both = place.compared & np.isfinite(values) & np.isfinite(others)
        where, mine, theirs = place.groups[both], values[both], others[both]
        found["change", name, "count"] = by_group(where)
        found["change", name, "sum"] = by_group(where, mine - theirs)
        found["change", name, "gained"] = by_group(where, (mine > theirs).astype(float))
        found["change", name, "lost"] = by_group(where, (mine < theirs).astype(float))
    return found
