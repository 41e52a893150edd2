"""Partial sums of an arm, from which all figures are computed. They can be added in any order.

A chunk is a run of shards with some hundred thousand images of one arm. Its sums are those of 20
groups (``tgate_batch.metrics.jackknife``), a sample of features, and a few rows by name. The sums
of full chunks are stored in the output under an identity, so an interrupted scoring can be resumed
and a repeated one reads little.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from tgate_batch.metrics.jackknife import GROUPS
from tgate_batch.metrics.moments import Moments
from tgate_batch.metrics.sampling import SAMPLE
from tgate_batch.output import history, shapes
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.storage.archives import Archive

CHUNK = 2**17  # images: at 2,048 dimensions the sums take a third of the memory of the features
MOST = 12  # most-changed images listed per metric
NAMED_ROWS = 20  # failed and broken rows that are listed

Sums = dict[tuple[str, ...], np.ndarray]


def by_group(groups: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Returns the number of entries of each group [20], or the sum of their values."""
    return np.bincount(groups, values, GROUPS).astype(np.float64)


def worst_of(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the most-changed images of several lists; of equal ones the earlier."""
    return sorted(chain.from_iterable(lists), key=lambda image: -image["badness"])[:MOST]


def add(into: Sums, more: Mapping[tuple[str, ...], np.ndarray]) -> None:
    """Adds ``more`` to ``into``, in place."""
    for key, value in more.items():
        into[key] = into[key] + value if key in into else np.asarray(value, np.float64)


@dataclass(frozen=True)
class Chunk:
    """Consecutive shards, with the positions of their first prompt and first batch in the run."""

    index: int
    shards: tuple[ShardPlan, ...]
    first_prompt: int
    first_batch: int
    full: bool


def chunks(shards: Iterable[ShardPlan], images_per_prompt: int, batch_size: int) -> list[Chunk]:
    """Cuts shards into chunks; all but the last are full, and do not change when shards join."""
    cut: list[Chunk] = []
    members: list[ShardPlan] = []
    first_prompt = first_batch = prompts = batches = 0
    for shard in shards:
        members.append(shard)
        prompts += shard.prompts
        batches += batches_of(shard, images_per_prompt, batch_size)
        if (prompts - first_prompt) * images_per_prompt >= CHUNK:
            cut.append(Chunk(len(cut), tuple(members), first_prompt, first_batch, True))
            members, first_prompt, first_batch = [], prompts, batches
    if members:
        cut.append(Chunk(len(cut), tuple(members), first_prompt, first_batch, False))
    return cut


def batches_of(shard: ShardPlan, images_per_prompt: int, batch_size: int) -> int:
    return -(-shard.prompts * images_per_prompt // batch_size)


class Sample:
    """Features of the images whose positions have the smallest hashes: the same in every arm.

    ``places`` [k] are the images' positions in the set, prompt after prompt. ``compared`` [k] is
    True if the baseline has the image too. ``rows`` [k, d] are the features.
    """

    def __init__(self, dimensions: int):
        none = (np.empty(0, np.int64), np.empty(0, bool), np.empty((0, dimensions), np.float32))
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [none]
        self._size = 0

    @classmethod
    def of(cls, places: np.ndarray, compared: np.ndarray, rows: np.ndarray) -> Sample:
        """Restores a sample from its arrays."""
        sample = cls(rows.shape[1])
        sample._append(places, compared, rows)
        return sample.trim()

    @property
    def places(self) -> np.ndarray:
        return self.trim()._parts[0][0]

    @property
    def compared(self) -> np.ndarray:
        return self.trim()._parts[0][1]

    @property
    def rows(self) -> np.ndarray:
        return self.trim()._parts[0][2]

    def add(self, places: np.ndarray, compared: np.ndarray, rows: np.ndarray) -> None:
        """Adds images; only some of them stay in the sample."""
        low = _hashes(places) < _limit(int(places.max()) + 1 if len(places) else 1)
        self._append(places[low], compared[low], rows[low])

    def merge(self, other: Sample) -> None:
        """Adds another sample's images."""
        self._append(other.places, other.compared, other.rows)

    def _append(self, places: np.ndarray, compared: np.ndarray, rows: np.ndarray) -> None:
        if len(places):
            self._parts.append((places, compared, rows))
            self._size += len(places)
        if self._size > 2 * SAMPLE:
            self.trim()

    def trim(self) -> Sample:
        """Keeps only the smallest hashes, in the order of positions; returns itself."""
        if len(self._parts) > 1:
            places, compared, rows = map(np.concatenate, zip(*self._parts, strict=True))
            chosen = np.argsort(_hashes(places), kind="stable")[:SAMPLE]
            chosen = chosen[np.argsort(places[chosen], kind="stable")]
            self._parts = [(places[chosen], compared[chosen], rows[chosen])]
            self._size = len(chosen)
        return self


def _hashes(places: np.ndarray) -> np.ndarray:
    """uint64 hash of each position (splitmix64, Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = places.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _limit(places: int) -> np.uint64:
    """A bound that the sample's hashes are below, for so many positions, with a margin of 20%."""
    return np.uint64(min(1.0, 1.2 * SAMPLE / places) * (2**64 - 2**12))


class FeatureSums:
    """Sums of an arm's features under one extractor.

    ``alone`` are the moments of the images that the baseline lacks, ``baseline_alone`` of the
    baseline's images that this arm lacks; subtracted from all, they leave the common images. They
    are None if there are no such images.
    """

    _MOMENTS = ("moments", "alone", "baseline_alone")

    def __init__(self, dimensions: int, groups: int = GROUPS):
        self.moments = Moments(dimensions, groups)
        self.alone: Moments | None = None
        self.baseline_alone: Moments | None = None
        self.sample = Sample(dimensions)

    def merge(self, other: FeatureSums) -> None:
        self.sample.merge(other.sample)
        for name in self._MOMENTS:
            mine, more = getattr(self, name), getattr(other, name)
            if mine is None:
                setattr(self, name, more)
            elif more is not None:
                mine.merge(more)

    def arrays(self) -> dict[str, np.ndarray]:
        sample = self.sample
        arrays = {"places": sample.places, "compared": sample.compared, "rows": sample.rows}
        for name in self._MOMENTS:
            moments = getattr(self, name)
            if moments is not None:
                arrays[name] = moments.save()
        return arrays

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray], dimensions: int) -> FeatureSums:
        features = cls.__new__(cls)
        features.sample = Sample.of(arrays["places"], arrays["compared"], arrays["rows"])
        for name in cls._MOMENTS:
            known = name in arrays
            setattr(features, name, Moments.load(arrays[name], dimensions) if known else None)
        return features


@dataclass
class ArmSums:
    """The sums of some shards of one arm.

    - ``failed`` and ``broken``: the first such rows.
    - ``macs``: for each figure, the number of rows of each cost.
    - ``worst``: by metric, the images that differ most from the baseline's.
    - ``damaged``: measurements that could not be read and were deleted.
    - ``missing``: measurements that do not exist.
    """

    sums: Sums = field(default_factory=dict)
    features: dict[str, FeatureSums] = field(default_factory=dict)  # by extractor
    failed: list[dict[str, Any]] = field(default_factory=list)
    broken: list[dict[str, Any]] = field(default_factory=list)
    made_by: list[dict[str, Any]] = field(default_factory=list)
    macs: dict[str, dict[str, int]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    worst: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def merge(self, other: ArmSums) -> None:
        """Adds another's sums, in place; the order of merging decides the last bits."""
        add(self.sums, other.sums)
        for name, features in other.features.items():
            if name in self.features:
                self.features[name].merge(features)
            else:
                self.features[name] = features
        self.failed = [*self.failed, *other.failed][:NAMED_ROWS]
        self.broken = [*self.broken, *other.broken][:NAMED_ROWS]
        self.made_by = history.merge_makers([*self.made_by, *other.made_by])
        for name, rows in other.macs.items():
            self.macs[name] = dict(Counter(self.macs.get(name, {})) + Counter(rows))
        self.damaged += other.damaged
        self.missing += other.missing
        for metric, images in other.worst.items():
            self.worst[metric] = worst_of(self.worst.get(metric, []), images)

    def save(self, stream: Any, identity: str) -> None:
        """Writes it as ``.npz``."""
        about = {
            "identity": identity,
            "keys": [list(key) for key in self.sums],
            "extractors": {name: f.moments.dimensions for name, f in self.features.items()},
            **{key: getattr(self, key) for key in NOTES},
        }
        arrays = numbered(self.sums, [features.arrays() for features in self.features.values()])
        np.savez(stream, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, content: bytes, identity: str) -> ArmSums | None:
        """Reads the output of ``save``; None if it is damaged or has another identity."""
        try:
            archive = Archive(content)
            about = json.loads(str(archive["about"]))
            if about["identity"] != identity:
                return None
            shapes.check_shape(about, shapes.RowNotes)
            sums = {tuple(key): archive[f"sum-{n}"] for n, key in enumerate(about["keys"])}
            features = {
                name: FeatureSums.load(arrays_of(archive, number), dimensions)
                for number, (name, dimensions) in enumerate(about["extractors"].items())
            }
        except Exception:  # zip, format and end-of-file errors have no common base class
            return None
        return cls(sums, features, **{key: about[key] for key in NOTES})


NOTES = ("failed", "broken", "made_by", "macs", "worst")  # fields of ArmSums that are JSON


def numbered(sums: Sums, parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns sums and the arrays of several parts under keys of one ``.npz`` file."""
    arrays = {f"sum-{number}": value for number, value in enumerate(sums.values())}
    for number, part in enumerate(parts):
        arrays |= {f"{key}-{number}": array for key, array in part.items()}
    return arrays


def arrays_of(archive: Archive, number: int) -> dict[str, Any]:
    """Returns the arrays of one part of a file that has the keys of ``numbered``."""
    suffix = f"-{number}"
    return {
        key.removesuffix(suffix): archive[key]
        for key in archive
        if key.endswith(suffix) and not key.startswith("sum-")
    }
