"""Sums -> figures and their intervals.

``conclude`` runs where the sums are, once an arm, and returns what an arm comes down to: sums of a
few numbers, and 21 values of each distance. ``scores`` sets two such conclusions beside each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from tgate_batch.errors import UserError
from tgate_batch.metrics import cmmd, kid
from tgate_batch.metrics.base import PictureMetric
from tgate_batch.metrics.features import Extractor
from tgate_batch.metrics.frechet import FrechetRoot, Statistics, frechet_distance, rank_deficient
from tgate_batch.metrics.jackknife import (
    LEAST_BATCHES,
    LEAST_PROMPTS,
    estimate,
    groups,
    paired_shares,
    ratios,
)
from tgate_batch.metrics.moments import frechet_values, statistics
from tgate_batch.metrics.precision_recall import NEIGHBOURS, precision_recall, radii
from tgate_batch.metrics.throughput import quantile
from tgate_batch.output import layout, shapes
from tgate_batch.score import plot_data
from tgate_batch.score.aggregate import SumsSource, summaries
from tgate_batch.score.partial_sums import ArmSums, Chunk, FeatureSums, Sample, Sums
from tgate_batch.score.reference import Reference
from tgate_batch.storage import Folder
from tgate_batch.storage.archives import Archive

VERSION = 1  # raised by hand when equal sums give other figures
PICTURES_A_DIMENSION = 3  # below it a Frechet distance's bias hides its changes
_CMMD_SCALE = 1000.0


class ReferenceFigures:
    """A reference set, with what every arm's distance to it needs: computed once."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self._within = reference.within

    @cached_property
    def root(self) -> FrechetRoot:
        return FrechetRoot(self.reference.statistics)

    @cached_property
    def radii(self) -> np.ndarray | None:
        """How wide the reference's manifold is around each of its images."""
        sample = self.reference.sample
        if self.reference.radii is not None or sample is None or len(sample) <= NEIGHBOURS:
            return self.reference.radii
        return radii(sample)

    def within(self, kernel: kid.Kernel) -> float:
        """The mean over pairs of the reference's images of its extractor's kernel."""
        if self._within is None:
            assert self.reference.sample is not None
            self._within = kid.mean_of_pairs(self.reference.sample, kernel)
        return self._within


@dataclass(frozen=True)
class Facts:
    """An extractor's properties, without its network."""

    name: str
    dimensions: int
    label: str
    note: str | None
    sha256: str
    version: int
    kind: str  # "frechet" or "cmmd": the distance that is taken on its features

    @classmethod
    def of(cls, extractor: Extractor) -> Facts:
        return cls(
            extractor.name,
            extractor.dimensions,
            extractor.label,
            extractor.note,
            extractor.sha256,
            getattr(extractor, "version", 1),
            getattr(extractor, "distance", "frechet"),
        )


@dataclass(frozen=True)
class ConcludeOrder:
    """An order to compute an arm's figures. ``baseline``: None for the baseline itself."""

    source: SumsSource
    chunks: tuple[Chunk, ...]
    baseline: SumsSource | None
    references: Mapping[str, tuple[str, str]]  # extractor -> a reference file, its sha256
    extractors: tuple[Facts, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.source.model, self.source.arm

    @property
    def identity(self) -> str:
        """What the conclusion is made of, as one digest."""
        made_of = {
            "version": VERSION,
            "chunks": [self.source.identity(chunk) for chunk in self.chunks],
            "references": {name: sha for name, (_, sha) in self.references.items()},
            "extractors": [asdict(facts) for facts in self.extractors],
            "grouped": self.source.grouped,
        }
        return sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SetFigures:
    """An arm's images beside a reference set.

    Values are 21 each: of all groups of prompts, then without each. ``compared`` are those of the
    images that the baseline has too, ``baselines`` the baseline's of the same images; None
    where both are the arms' own values. What could not be computed is None.
    """

    count: int
    compared_count: int
    distance: float | None = None
    rank_deficient: tuple[str, ...] = ()  # of the arm, the reference, or both
    values: np.ndarray | None = None
    compared: np.ndarray | None = None
    baselines: np.ndarray | None = None
    kernel: np.ndarray | None = None
    kernel_compared: np.ndarray | None = None
    kernel_baselines: np.ndarray | None = None
    sample: int = 0
    reference_sample: int = 0
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Conclusion:
    """One arm's aggregated results, small enough to send to the driver."""

    model: str
    arm: str
    sums: Sums
    named: Mapping[str, Any]  # failed, broken and most changed images, makers, MACs
    sets: Mapping[str, SetFigures]  # by extractor
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def of_nothing(cls, model: str, arm: str) -> Conclusion:
        """Returns the conclusion of an arm without images."""
        named: dict[str, Any] = {"failed": [], "broken": [], "made_by": [], "macs": {}, "worst": {}}
        return cls(model, arm, {}, named, {})

    def save(self, stream: Any, identity: str) -> None:
        """Writes it as ``.npz``."""
        sets = {name: asdict(found) for name, found in self.sets.items()}
        arrays = {f"sum-{number}": value for number, value in enumerate(self.sums.values())}
        for name, found in sets.items():
            for key, value in list(found.items()):
                if isinstance(value, np.ndarray):
                    arrays[f"{key}-{list(sets).index(name)}"] = found.pop(key)
        about = {
            "identity": identity,
            "key": [self.model, self.arm],
            "sums": [list(key) for key in self.sums],
            "named": self.named,
            "sets": sets,
        }
        np.savez(stream, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, content: bytes, identity: str) -> Conclusion | None:
        """What ``save`` wrote; None where it is damaged or of another identity."""
        try:
            archive = Archive(content)
            about = json.loads(str(archive["about"]))
            if about["identity"] != identity:
                return None
            shapes.check_shape(about["named"], shapes.RowNotes)
            keys = [tuple(key) for key in about["sums"]]
            sums = {key: archive[f"sum-{number}"] for number, key in enumerate(keys)}
            sets = {}
            for number, (name, found) in enumerate(about["sets"].items()):
                arrays: dict[str, Any] = {
                    key.removesuffix(f"-{number}"): archive[key]
                    for key in archive
                    if key.endswith(f"-{number}") and not key.startswith("sum-")
                }
                found["rank_deficient"] = tuple(found["rank_deficient"])
                sets[name] = SetFigures(**found, **arrays)
        except Exception:  # zip, format and end-of-file faults have no common parent
            return None
        model, arm = about["key"]
        return cls(model, arm, sums, about["named"], sets)


def stored_conclusion(folder: Folder, order: ConcludeOrder) -> Conclusion | None:
    """The conclusion that the output holds already, if it is of the same."""
    name = layout.conclusion(*order.key)
    content = folder.get(name)
    return None if content is None else Conclusion.load(content, order.identity)


def conclude(
    folder: Folder,
    order: ConcludeOrder,
    beside: Mapping[str, ReferenceFigures],
    baselines: dict[str, ArmSums],
) -> Conclusion:
    """Computes an arm's figures from its sums; saves ``mu`` and ``sigma``.

    The conclusion is kept, unless a file was missing or something could not be computed. Where an
    arm and the baseline lack images of each other, the baseline's sums are needed too: those of
    the model at hand stay in ``baselines``.
    """
    summary, whole = _merged(folder, order.source, order.chunks)
    if order.baseline is None:
        baselines.clear()
        baselines[order.source.model] = summary
    sets, problems = {}, []
    for facts in order.extractors:
        features = summary.features.get(facts.name)
        if features is None or not features.moments.count:
            continue
        theirs = None
        differ = features.alone is not None or features.baseline_alone is not None
        if order.baseline is not None and differ:
            model = order.source.model
            if model not in baselines:
                baselines.clear()
                baselines[model], _ = _merged(folder, order.baseline, order.chunks)
            theirs = baselines[model].features.get(facts.name)
        try:
            own = statistics(features.moments.total())
            _save_statistics(folder, order, facts, own)
            sets[facts.name] = _set_figures(
                facts, features, own, theirs, beside.get(facts.name), order.source
            )
        except UserError as error:
            problems.append(f"{' '.join(order.key)}, {facts.name}: {error}")
    if order.baseline is None:
        for features in summary.features.values():
            features.moments.pack()  # they wait beside another arm's
    named = {key: getattr(summary, key) for key in ("failed", "broken", "made_by", "macs", "worst")}
    damaged = tuple(summary.damaged)
    model, arm = order.key
    missing = tuple(dict.fromkeys(summary.missing))
    found = Conclusion(model, arm, summary.sums, named, sets, damaged, missing, tuple(problems))
    if whole and not problems:
        with folder.create(layout.conclusion(*order.key)) as stream:
            found.save(stream, order.identity)
    return found


def _merged(folder: Folder, source: SumsSource, chosen: tuple[Chunk, ...]) -> tuple[ArmSums, bool]:
    """All chunks added up in order, and whether every file was there."""
    found, every = ArmSums(), True
    for summary, whole in summaries(folder, source, chosen):
        found.merge(summary)
        every = every and whole
    return found, every


def _save_statistics(folder: Folder, order: ConcludeOrder, facts: Facts, own: Statistics) -> None:
    if facts.kind != "frechet" or (own.count or 0) < 2:
        return
    with folder.create(layout.statistics(facts.name, *order.key)) as file:
        own.save(file)


def _set_figures(
    facts: Facts,
    features: FeatureSums,
    own: Statistics,
    theirs: FeatureSums | None,
    beside: ReferenceFigures | None,
    source: SumsSource,
) -> SetFigures:
    moments = features.moments
    count = moments.count
    both = count - (0 if features.alone is None else features.alone.count)
    found: dict[str, Any] = {"count": count, "compared_count": both if source.baseline else 0}
    if beside is None or count < 2:
        return SetFigures(**found)
    if facts.kind == "cmmd":
        return SetFigures(**found, **_kernel_figures(facts, features, theirs, beside, source))
    deficient = {"the arm": own, "the reference": beside.reference.statistics}
    found["distance"] = frechet_distance(own, beside.reference.statistics)
    found["rank_deficient"] = tuple(name for name, s in deficient.items() if rank_deficient(s))
    if enough_images(count, facts.dimensions) and source.grouped:
        found["values"] = frechet_values(moments, beside.root)
        if theirs is not None and enough_images(both, facts.dimensions):
            found["compared"] = frechet_values(moments, beside.root, features.alone)
            found["baselines"] = frechet_values(
                theirs.moments, beside.root, features.baseline_alone
            )
    return SetFigures(**found, **_kernel_figures(facts, features, theirs, beside, source))


def enough_images(count: int, dimensions: int) -> bool:
    """Whether a Frechet distance of so many images tells its changes."""
    return count >= PICTURES_A_DIMENSION * dimensions


def _kernel_figures(
    facts: Facts,
    features: FeatureSums,
    theirs: FeatureSums | None,
    beside: ReferenceFigures,
    source: SumsSource,
) -> dict[str, Any]:
    """Figures of the sample: kernel distance, precision and recall."""
    reference = beside.reference.sample
    if reference is None:
        return {}
    published = facts.kind == "cmmd"
    kernel = cmmd.gaussian_kernel if published else kid.polynomial
    scale = _CMMD_SCALE if published else 1.0

    def values(sample: Sample, chosen: np.ndarray) -> np.ndarray | None:
        prompts = sample.places[chosen] // source.images_per_prompt
        sums = kid.kernel_sums(
            sample.rows[chosen],
            groups(prompts),
            prompts,
            reference,
            kernel,
            beside.within(kernel),
        )
        found = sums.values()
        return None if found is None else scale * found

    sample = features.sample
    found: dict[str, Any] = {"sample": len(sample.rows), "reference_sample": len(reference)}
    if published:
        found["distance"] = cmmd.cmmd(sample.rows, reference)
    else:
        shares = precision_recall(sample.rows, reference, reference_radii=beside.radii)
        found["precision"], found["recall"] = shares or (None, None)
    found["kernel"] = values(sample, np.ones(len(sample.rows), bool))
    if theirs is not None:
        found["kernel_compared"] = values(sample, sample.compared)
        other = theirs.sample
        same = np.isin(other.places, sample.places[sample.compared])
        found["kernel_baselines"] = values(other, same)
    return found


def scores(
    own: Conclusion,
    baseline: Conclusion | None,
    metrics: tuple[PictureMetric, ...],
    extractors: tuple[Facts, ...],
    references: Mapping[str, Reference],
) -> dict[str, Any]:
    """An arm's scores, as they stand in the output. ``baseline`` is None for the baseline itself.

    What was not measured is None; what is left out on purpose says why under ``withheld``.
    """
    writing = _Scores(own, baseline)
    found = writing.rows() | writing.times() | writing.pictures(metrics) | writing.by(metrics)
    found |= plot_data.plot_data(own.sums, metrics) | writing.worst()
    distances = {
        facts.name: writing.sets(facts, references.get(facts.name)) for facts in extractors
    }
    first = extractors[0].name if extractors else None
    leading = distances.pop(first, None) if first else None
    leading = leading or dict.fromkeys(_SET_KEYS)
    value = leading.pop("distance")
    official = leading["distance_label"] is not None and leading["distance_label"].startswith(
        "FID-"
    )
    found |= {"fid": value if official else None, "fd": None if official else value}
    withheld = writing.withheld | (leading.pop("withheld") or {})
    return found | leading | {"distances": distances or None, "withheld": withheld}


_SET_KEYS = (
    "distance",
    "distance_label",
    "distance_note",
    "distance_corrected",
    "distance_change",
    "kid",
    "kid_change",
    "precision",
    "recall",
    "reference",
    "withheld",
)


def _mean_macs(named: Mapping[str, Any], figure: str) -> int | None:
    """The mean of the rows; where rows are of one kind, what each of them costs."""
    rows = {int(macs): count for macs, count in named["macs"].get(figure, {}).items()}
    if not rows:
        return None
    return round(sum(macs * count for macs, count in rows.items()) / sum(rows.values()))


class _Scores:
    """Puts an arm's scores together, section by section."""

    def __init__(self, own: Conclusion, baseline: Conclusion | None):
        self.own = own
        self.baseline = baseline
        self.withheld: dict[str, str] = {}
        self._prompts = int(_total(own.sums, "prompts"))
        self._compared = int(_total(own.sums, "prompts compared"))

    def rows(self) -> dict[str, Any]:
        sums, named = self.own.sums, self.own.named
        return {
            "model": self.own.model,
            "arm": self.own.arm,
            "images": int(_total(sums, "images")),
            "errors": int(_total(sums, "errors")),
            "error_rows": named["failed"],
            "error_kinds": self._error_kinds(),
            "broken": int(_total(sums, "broken")),
            "broken_rows": named["broken"],
            "prompts": self._prompts,
            "prompts_compared": self._compared if self.baseline else None,
            "macs_per_image": _mean_macs(named, "macs_per_image"),
            "macs_per_image_with_attention": _mean_macs(named, "macs_per_image_with_attention"),
            "made_by": named["made_by"],
        }

    def _error_kinds(self) -> list[dict[str, Any]]:
        """Each kind of error, how many rows have it, and what one of them says; most first."""
        counts = {key[1]: int(n) for key, n in self.own.sums.items() if key[0] == "failed"}
        says = {row["error_kind"]: row["error"] for row in reversed(self.own.named["failed"])}
        return [
            {"kind": kind, "rows": rows, "error": says.get(kind, kind)}
            for kind, rows in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]

    def worst(self) -> dict[str, Any]:
        """By metric: the images that changed most beside the baseline's, worst first."""
        keys = ("prompt_id", "image_number", "shard", "value")
        named = self.own.named["worst"]
        return {
            "most_changed": {
                metric: [{key: picture[key] for key in keys} for picture in pictures]
                for metric, pictures in named.items()
            }
        }

    def times(self) -> dict[str, Any]:
        """Images a second, by groups of batches; each worker's first batch is left out."""
        sums = self.own.sums
        found: dict[str, Any] = {
            "images_per_second_per_worker": None,
            "images_per_second_interval": None,
            "speedup_interval": None,
            "batch_seconds_p50": None,
            "batch_seconds_p95": None,
            "device_seconds": _total(sums, "device seconds"),
            "seconds_per_image": {
                stage: _quotient(
                    _total(sums, "stage", stage, "seconds"), _total(sums, "stage", stage, "images")
                )
                for stage in ("denoise", "decode", "encode")
            },
        }
        if not _total(sums, "time", "batches"):
            return found
        values = ratios(sums["time", "images"], sums["time", "seconds"])
        found["images_per_second_per_worker"] = float(values[0])
        found["batch_seconds_p50"] = quantile(sums["latency",], 0.5)
        found["batch_seconds_p95"] = quantile(sums["latency",], 0.95)
        few = _few_batches(sums)
        if few:
            self.withheld["images_per_second_interval"] = few
        else:
            found["images_per_second_interval"] = asdict(estimate(values))
        if self.baseline is not None and _total(self.baseline.sums, "time", "batches"):
            theirs = self.baseline.sums
            if few := few or _few_batches(theirs):
                self.withheld["speedup_interval"] = few
            else:
                slower = ratios(theirs["time", "images"], theirs["time", "seconds"])
                found["speedup_interval"] = asdict(estimate(values / slower))
        return found

    def pictures(self, metrics: tuple[PictureMetric, ...]) -> dict[str, Any]:
        """Means of figures of single images, and their changes over the images of both arms."""
        alone: dict[str, Any] = {}
        paired: dict[str, Any] = {}
        intervals: dict[str, Any] = {}
        changes: dict[str, Any] = {}
        for metric in metrics:
            if metric.needs_baseline and self.baseline is None:
                continue
            (paired if metric.needs_baseline else alone)[metric.name] = self._mean((), metric)
            intervals[metric.name] = self._interval((), metric, self._prompts)
            if not metric.needs_baseline and self.baseline is not None:
                changes[metric.name] = self._change((), metric, self._compared)
        if (intervals or changes) and self._prompts < LEAST_PROMPTS:
            self.withheld["intervals"] = _few_prompts(self._prompts)
        if changes and self._compared < LEAST_PROMPTS:
            self.withheld["change"] = _few_prompts(self._compared)
        beside = self.baseline is not None
        return alone | {
            "paired": paired if beside else None,
            "intervals": intervals,
            "change": changes if beside else None,
        }

    def by(self, metrics: tuple[PictureMetric, ...]) -> dict[str, Any]:
        """The same for each value of the column that the run is broken down by."""
        names = dict.fromkeys(key[1] for key in self.own.sums if key[0] == "by")
        found = {}
        for name in names:
            prefix = ("by", name)
            prompts = int(_total(self.own.sums, *prefix, "prompts"))
            found[name] = {
                "prompts": prompts,
                **{m.name: self._mean(prefix, m) for m in metrics},
                "change": {
                    m.name: self._change(prefix, m, prompts)
                    for m in metrics
                    if self.baseline is not None and not m.needs_baseline
                },
            }
        return {"by": found or None}

    def sets(self, facts: Facts, reference: Reference | None) -> dict[str, Any]:
        """Distances of the arm's images from a reference set under one extractor."""
        found: dict[str, Any] = dict.fromkeys(_SET_KEYS)
        own = self.own.sets.get(facts.name)
        if own is None or reference is None:
            return found
        if own.distance is None:
            few = own.count < 2 or reference.sample is not None
            reason = "two images are the least" if few else _no_sample(reference)
            return found | {"withheld": {"distance": reason}}
        count = own.count if facts.kind == "frechet" else own.sample
        notes = [] if facts.note is None else [facts.note]
        if own.rank_deficient:
            held = {"the arm": own.count, "the reference": reference.statistics.count}
            counts = " and ".join(f"{held[which]}" for which in own.rank_deficient)
            notes.append(
                f"rank-deficient: {' and '.join(own.rank_deficient)} ({counts} images for "
                f"{facts.dimensions} dimensions); compare arms of one run, not runs of other sizes"
            )
        found |= {
            "distance": own.distance,
            "distance_label": f"{facts.label}-{count}",
            "distance_note": "; ".join(notes) or None,
            "precision": own.precision,
            "recall": own.recall,
            "reference": {
                "name": reference.name,
                "sha256": reference.sha256,
                "count": reference.statistics.count,
                "sample": own.reference_sample or None,
            },
        }
        withheld: dict[str, str] = {}
        if facts.kind == "frechet":
            self._frechet(found, withheld, facts, own)
            self._kernel(found, withheld, facts, own, reference, "kid", "kid_change")
            if found["kid"] is not None:
                found["kid"] |= {"mean": found["kid"]["value"], "pictures": own.sample}
        else:
            self._kernel(
                found, withheld, facts, own, reference, "distance_corrected", "distance_change"
            )
        return found | {"withheld": withheld}

    def _frechet(
        self, found: dict[str, Any], withheld: dict[str, str], facts: Facts, own: SetFigures
    ) -> None:
        theirs = None if self.baseline is None else self.baseline.sets.get(facts.name)
        for key, count, prompts in (
            ("distance_corrected", own.count, self._prompts),
            ("distance_change", own.compared_count, self._compared),
        ):
            if key == "distance_change" and theirs is None:
                continue
            if not enough_images(count, facts.dimensions):
                withheld[key] = not_comparable(count, facts.dimensions)
            elif prompts < LEAST_PROMPTS:
                withheld[key] = _few_prompts(prompts)
            elif key == "distance_corrected" and own.values is not None:
                found[key] = asdict(estimate(own.values))
            elif key == "distance_change" and theirs is not None:
                found[key] = _difference(own.values, own.compared, own.baselines, theirs.values)

    def _kernel(
        self,
        found: dict[str, Any],
        withheld: dict[str, str],
        facts: Facts,
        own: SetFigures,
        reference: Reference,
        key: str,
        change: str,
    ) -> None:
        theirs = None if self.baseline is None else self.baseline.sets.get(facts.name)
        if reference.sample is None:
            reason = _no_sample(reference)
            names = (key, *([change] if theirs else []), "precision", "recall")
            withheld |= dict.fromkeys(names, reason)
            return
        if self._prompts < LEAST_PROMPTS:
            withheld[key] = _few_prompts(self._prompts)
        elif own.kernel is not None:
            found[key] = asdict(estimate(own.kernel))
        if theirs is None:
            return
        if self._compared < LEAST_PROMPTS:
            withheld[change] = _few_prompts(self._compared)
        else:
            found[change] = _difference(
                own.kernel, own.kernel_compared, own.kernel_baselines, theirs.kernel
            )

    def _mean(self, prefix: tuple[str, ...], metric: PictureMetric) -> float | None:
        count = _total(self.own.sums, *prefix, "figure", metric.name, "count")
        return _quotient(_total(self.own.sums, *prefix, "figure", metric.name, "sum"), count)

    def _interval(
        self, prefix: tuple[str, ...], metric: PictureMetric, prompts: int
    ) -> dict[str, Any] | None:
        sums = self.own.sums
        counts = sums.get((*prefix, "figure", metric.name, "count"))
        if counts is None or not counts.sum() or prompts < LEAST_PROMPTS or metric.yes_no:
            return None
        return asdict(estimate(ratios(sums[*prefix, "figure", metric.name, "sum"], counts)))

    def _change(
        self, prefix: tuple[str, ...], metric: PictureMetric, prompts: int
    ) -> dict[str, Any] | None:
        """The mean difference to the baseline's same images."""
        sums, key = self.own.sums, (*prefix, "change", metric.name)
        counts = sums.get((*key, "count"))
        if counts is None or not counts.sum():
            return None
        gained, lost = sums[*key, "gained"], sums[*key, "lost"]
        total = float(counts.sum())
        if metric.yes_no:
            found = paired_shares(counts, gained, lost, max(1.0, total / max(prompts, 1)))
            known = {"gained": int(gained.sum()), "lost": int(lost.sum()), "count": int(total)}
        else:
            found, known = estimate(ratios(sums[*key, "sum"], counts)), {}
        if prompts < LEAST_PROMPTS:
            return {"value": found.value, "low": None, "high": None, **known}
        return asdict(found) | known


def not_comparable(count: int, dimensions: int) -> str:
    """Why a Frechet distance of so few images is not compared, and how many would do."""
    each = count / dimensions
    needed = PICTURES_A_DIMENSION * dimensions
    return f"not comparable: {each:.2f} images a dimension, {needed:,} needed"


def _no_sample(reference: Reference) -> str:
    return (
        f"reference {reference.name} holds no features of single images; make it with "
        "tgate-batch reference"
    )


def _few_prompts(count: int) -> str:
    return f"{count} prompts, and an interval needs {LEAST_PROMPTS}"


def _few_batches(sums: Sums) -> str | None:
    count = int(_total(sums, "time", "batches"))
    if count >= LEAST_BATCHES and (sums["time", "batches"] > 0).all():
        return None
    return (
        f"{count} batches, and an interval of time needs {LEAST_BATCHES} in {LEAST_BATCHES} groups"
    )


def _difference(
    own: np.ndarray | None,
    compared: np.ndarray | None,
    baselines: np.ndarray | None,
    theirs: np.ndarray | None,
) -> dict[str, float] | None:
    """Change of a distance, over the images that both arms have."""
    mine = own if compared is None else compared
    other = theirs if baselines is None else baselines
    return None if mine is None or other is None else asdict(estimate(mine - other))


def _total(sums: Sums, *key: str) -> float:
    return float(np.sum(sums[key])) if key in sums else 0.0


def _quotient(over: float, under: float) -> float | None:
    return over / under if under else None
