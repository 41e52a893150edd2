"""Sums of one shard: columns of Arrow in, partial sums out, without Python objects for rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tgate_batch.metrics import throughput
from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.jackknife import groups
from tgate_batch.output import parquet, shapes
from tgate_batch.score import plot_data
from tgate_batch.score.measure import MACS
from tgate_batch.score.partial_sums import Sums, by_group


class ShardRows:
    """A shard's rows of one arm, as columns of length n.

    ``prompt`` is the index of a row's prompt in the shard, ``ok`` is True for rows with an image,
    ``whole`` for rows with an image that is not broken. Raises an error if columns are missing.
    """

    def __init__(self, table: pa.Table):
        self.table = table
        self.ids = table["prompt_id"].combine_chunks()
        self.number = table["image_number"].to_numpy().astype(np.int64)
        self.prompt = self.ids.dictionary_encode().indices.to_numpy().astype(np.int64)
        self.ok = pc.equal(table["status"], "ok").to_numpy(zero_copy_only=False)
        self.whole = self.ok & table["broken"].is_null().to_numpy(zero_copy_only=False)
        footer = shapes.of_rows(parquet.footer_of(table.schema.metadata or {}), MACS)
        macs = {key: footer[key] for key in MACS if footer.get(key) is not None}
        self.macs = {key: {str(value): len(table)} for key, value in macs.items()}
        self.made_by = [footer["made_by"]] if "made_by" in footer else []

    def has_same_images(self, other: ShardRows) -> bool:
        same = len(self.ids) == len(other.ids) and self.ids.equals(other.ids)
        return same and bool((self.number == other.number).all())

    def seconds(self, stage: str) -> np.ndarray:
        return self.table[f"{stage}_seconds"].to_numpy().astype(np.float64)


@dataclass(frozen=True)
class Positions:
    """For each row: its prompt's position in the set, its group, and if the baseline has it too."""

    prompts: np.ndarray
    groups: np.ndarray
    compared: np.ndarray

    def count_prompts(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the number of prompts of each group [20] that have a chosen row."""
        _, first = np.unique(self.prompts[chosen], return_index=True)
        return by_group(self.groups[chosen][first])


class ChunkBatches(NamedTuple):
    """The number of a chunk, its first batch, and its number of batches."""

    chunk: int
    first_batch: int
    batches: int


def counts(rows: ShardRows, positions: Positions) -> Sums:
    """Returns numbers of images, errors, broken images and prompts."""
    failed = rows.table.filter(pa.array(~rows.ok))["error_kind"].value_counts().to_pylist()
    return {
        **{("failed", str(kind["values"])): np.asarray(kind["counts"]) for kind in failed},
        ("images",): np.asarray(rows.ok.sum()),
        ("errors",): np.asarray((~rows.ok).sum()),
        ("broken",): np.asarray((rows.ok & ~rows.whole).sum()),
        ("prompts",): positions.count_prompts(rows.whole),
        ("prompts compared",): positions.count_prompts(positions.compared),
    }


def times(rows: ShardRows, first_batch: int, batch_size: int, chunk: ChunkBatches) -> Sums:
    """Returns sums over groups of batches.

    A batch has the same position in every arm, also if a worker halved its batch size.
    """
    number = rows.table["batch"].combine_chunks().dictionary_encode().indices
    batches = throughput.Batches.of(
        np.where(rows.ok, number.fill_null(-1).to_numpy(), -1),
        rows.seconds("batch"),
        rows.seconds("denoise"),
        rows.seconds("decode"),
        rows.table["warm_up"].fill_null(False).to_numpy(zero_copy_only=False),
    )
    timed = ~batches.warm_up
    positions = first_batch + batches.first_row // batch_size
    group = groups(positions)[timed]
    workers = rows.table["worker"].to_numpy()
    sums: Sums = {
        ("device seconds",): np.asarray(batches.seconds.sum()),
        ("time", "images"): by_group(group, batches.images[timed]),
        ("time", "seconds"): by_group(group, batches.seconds[timed]),
        ("time", "batches"): by_group(group),
        ("latency",): throughput.histogram(batches.seconds[timed]),
        **plot_data.course(batches, positions - chunk.first_batch, chunk.chunk, chunk.batches),
        **plot_data.by_worker(batches, workers),
    }
    for stage in ("denoise", "decode"):
        seconds = getattr(batches, f"{stage}_seconds")
        known = timed & np.isfinite(seconds)
        sums["stage", stage, "seconds"] = np.asarray(seconds[known].sum())
        sums["stage", stage, "images"] = np.asarray(float(batches.images[known].sum()))
    encode = rows.seconds("encode")
    sums["stage", "encode", "seconds"] = np.asarray(np.nansum(encode))
    sums["stage", "encode", "images"] = np.asarray(float(np.isfinite(encode).sum()))
    return sums


def figure(
    metric: ImageMetric,
    values: np.ndarray,
    baselines: np.ndarray | None,
    rows: ShardRows,
    positions: Positions,
) -> Sums:
    """Returns a metric's sums over its images, and of its change over those of both arms."""
    name = metric.name
    known = np.isfinite(values) & (positions.compared if metric.needs_baseline else rows.whole)
    sums: Sums = {
        ("figure", name, "count"): by_group(positions.groups[known]),
        ("figure", name, "sum"): by_group(positions.groups[known], values[known]),
    }
    if baselines is not None:
        both = positions.compared & np.isfinite(values) & np.isfinite(baselines)
        group, mine, other = positions.groups[both], values[both], baselines[both]
        sums["change", name, "count"] = by_group(group)
        sums["change", name, "sum"] = by_group(group, mine - other)
        sums["change", name, "gained"] = by_group(group, (mine > other).astype(float))
        sums["change", name, "lost"] = by_group(group, (mine < other).astype(float))
    return sums
