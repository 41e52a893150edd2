"""Sums that figures are functions of. They add up in any order, so any worker may take any part.

A chunk is a row of shards with some hundred thousand images of one arm. Its summary holds the
sums of 20 groups (``tgate_batch.metrics.jackknife``), a sample of features, and a few rows by name.
Whole chunks' summaries are kept in the output under an identity, so that a scoring that was
stopped goes on, and one that is repeated reads little.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tgate_batch.metrics.jackknife import GROUPS
from tgate_batch.metrics.moments import Moments
from tgate_batch.output import history, shapes
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.storage.archives import Archive

SAMPLE = 10_000  # images whose features are kept for distances that need them one by one
CHUNK = 2**17  # images: at 2,048 dimensions the sums are then a third of the features
_SHOWN = 20  # rows that are named
MOST = 12  # images of each metric that are named since they changed most

Sums = dict[tuple[str, ...], np.ndarray]


def by_group(groups: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """How many of each group [20], or the sum of their values."""
    return np.bincount(groups, values, GROUPS).astype(np.float64)


def worst_of(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images of several lists that changed most; of equal ones the earlier."""
    every = [picture for part in parts for picture in part]
    return sorted(every, key=lambda picture: -picture["badness"])[:MOST]


def add(into: Sums, more: Mapping[tuple[str, ...], np.ndarray]) -> None:
    """Adds sums up, in place."""
    for key, value in more.items():
        into[key] = into[key] + value if key in into else np.asarray(value, np.float64)


@dataclass(frozen=True)
class Chunk:
    """Shards in a row; ``first_prompt`` and ``first_batch`` are the places they begin at."""

    index: int
    shards: tuple[ShardPlan, ...]
    first_prompt: int
    first_batch: int
    full: bool


def chunks(shards: Iterable[ShardPlan], images_per_prompt: int, batch_size: int) -> list[Chunk]:
    """The shards cut into chunks; all but the last are full, and stay when shards join."""
    found: list[Chunk] = []
    held: list[ShardPlan] = []
    prompts, batches = 0, 0  # of the chunks before
    inside, batches_inside = 0, 0
    for shard in shards:
        held.append(shard)
        inside += shard.prompts
        batches_inside += batches_of(shard, images_per_prompt, batch_size)
        if inside * images_per_prompt >= CHUNK:
            found.append(Chunk(len(found), tuple(held), prompts, batches, True))
            prompts, batches = prompts + inside, batches + batches_inside
            held, inside, batches_inside = [], 0, 0
    if held:
        found.append(Chunk(len(found), tuple(held), prompts, batches, False))
    return found


def batches_of(shard: ShardPlan, images_per_prompt: int, batch_size: int) -> int:
    return -(-shard.prompts * images_per_prompt // batch_size)


class Sample:
    """Features of the images with the smallest hashes of their places: the same in every arm.

    ``places`` [k] are those of images in the set, prompt after prompt; ``compared`` [k] says
    whether the baseline has the image too; ``rows`` [k, d] are its features.
    """

    def __init__(self, dimensions: int):
        none = (np.empty(0, np.int64), np.empty(0, bool), np.empty((0, dimensions), np.float32))
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [none]
        self._held = 0

    @classmethod
    def of(cls, places: np.ndarray, compared: np.ndarray, rows: np.ndarray) -> Sample:
        """A sample that was trimmed."""
        made = cls(rows.shape[1])
        made._keep(places, compared, rows)
        return made.trim()

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
        """Takes images into account; only some of them stay."""
        low = _hashes(places) < _limit(int(places.max()) + 1 if len(places) else 1)
        self._keep(places[low], compared[low], rows[low])

    def merge(self, other: Sample) -> None:
        """Takes another sample's images into account."""
        self._keep(other.places, other.compared, other.rows)

    def _keep(self, places: np.ndarray, compared: np.ndarray, rows: np.ndarray) -> None:
        if len(places):
            self._parts.append((places, compared, rows))
            self._held += len(places)
        if self._held > 2 * SAMPLE:
            self.trim()

    def trim(self) -> Sample:
        """Leaves the smallest hashes, in the order of places; returns itself."""
        if len(self._parts) > 1:
            places, compared, rows = (
                np.concatenate(part) for part in zip(*self._parts, strict=True)
            )
            kept = np.argsort(_hashes(places), kind="stable")[:SAMPLE]
            kept = kept[np.argsort(places[kept], kind="stable")]
            self._parts = [(places[kept], compared[kept], rows[kept])]
            self._held = len(kept)
        return self


def _hashes(places: np.ndarray) -> np.ndarray:
    """uint64 of each place (splitmix64, Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = places.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _limit(places: int) -> np.uint64:
    """Of so many places the smallest hashes are below it, with a fifth to spare."""
    return np.uint64(min(1.0, 1.2 * SAMPLE / places) * (2**64 - 2**12))


class FeatureSums:
    """An arm's features under one extractor.

    ``alone`` has the images that the baseline lacks, ``baseline_alone`` the baseline's that this
    arm lacks: taken away from all, they leave what both have. None where there are no such ones.
    """

    def __init__(self, dimensions: int, groups: int = GROUPS):
        self.moments = Moments(dimensions, groups)
        self.alone: Moments | None = None
        self.baseline_alone: Moments | None = None
        self.sample = Sample(dimensions)

    def merge(self, other: FeatureSums) -> None:
        self.moments.merge(other.moments)
        self.sample.merge(other.sample)
        for name in ("alone", "baseline_alone"):
            mine, more = getattr(self, name), getattr(other, name)
            if mine is None:
                setattr(self, name, more)
            elif more is not None:
                mine.merge(more)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        yield "places", self.sample.places
        yield "compared", self.sample.compared
        yield "rows", self.sample.rows
        for name in ("moments", "alone", "baseline_alone"):
            found = getattr(self, name)
            if found is not None:
                yield name, found.save()

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray], dimensions: int) -> FeatureSums:
        made = cls.__new__(cls)
        made.sample = Sample.of(arrays["places"], arrays["compared"], arrays["rows"])
        for name in ("moments", "alone", "baseline_alone"):
            known = name in arrays
            setattr(made, name, Moments.load(arrays[name], dimensions) if known else None)
        return made


@dataclass
class ArmSums:
    """What shards of one arm add up to.

    ``failed`` and ``broken``: the first such rows. ``macs``: of each figure, how many rows cost so
    much. ``worst``: by metric, the images that changed
    most beside the baseline's. ``damaged``: measurements that could not be
    read, and are gone now. ``missing``: those that were not found.
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
        """Adds another's, in place; the order of merging decides the last bits."""
        add(self.sums, other.sums)
        for name, features in other.features.items():
            if name in self.features:
                self.features[name].merge(features)
            else:
                self.features[name] = features
        self.failed = [*self.failed, *other.failed][:_SHOWN]
        self.broken = [*self.broken, *other.broken][:_SHOWN]
        self.made_by = history.merge_makers([*self.made_by, *other.made_by])
        for name, rows in other.macs.items():
            held = self.macs.get(name, {})
            self.macs[name] = dict(Counter(held) + Counter(rows))
        self.damaged += other.damaged
        self.missing += other.missing
        for metric, pictures in other.worst.items():
            self.worst[metric] = worst_of(self.worst.get(metric, []), pictures)

    def save(self, stream: Any, identity: str) -> None:
        """Writes it as ``.npz``."""
        about = {
            "identity": identity,
            "keys": [list(key) for key in self.sums],
            "extractors": {name: f.moments.dimensions for name, f in self.features.items()},
            "failed": self.failed,
            "broken": self.broken,
            "made_by": self.made_by,
            "macs": self.macs,
            "worst": self.worst,
        }
        arrays = {f"sum-{number}": value for number, value in enumerate(self.sums.values())}
        for number, features in enumerate(self.features.values()):
            arrays |= {f"{name}-{number}": array for name, array in features.arrays()}
        np.savez(stream, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, content: bytes, identity: str) -> ArmSums | None:
        """What ``save`` wrote; None where it is damaged or of another identity."""
        try:
            archive = Archive(content)
            about = json.loads(str(archive["about"]))
            if about["identity"] != identity:
                return None
            shapes.check_shape(about, shapes.RowNotes)
            keys = [tuple(key) for key in about["keys"]]
            sums = {key: archive[f"sum-{number}"] for number, key in enumerate(keys)}
            features = {}
            for number, (name, dimensions) in enumerate(about["extractors"].items()):
                suffix = f"-{number}"
                arrays = {
                    key.removesuffix(suffix): archive[key]
                    for key in archive
                    if key.endswith(suffix) and not key.startswith("sum-")
                }
                features[name] = FeatureSums.load(arrays, dimensions)
        except Exception:  # zip, format and end-of-file faults have no common parent
            return None
        known = {key: about[key] for key in ("failed", "broken", "made_by", "macs", "worst")}
        return cls(sums, features, **known)
