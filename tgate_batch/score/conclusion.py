"""Reduces an arm's sums to its conclusion: a few numbers, and 21 values of each distance.

``conclude`` runs on a worker, next to the sums. A conclusion is small enough to be sent to the
driver, where ``tgate_batch.score.figures`` turns conclusions into scores.
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
from tgate_batch.metrics.frechet import FrechetRoot, frechet_distance, rank_deficient
from tgate_batch.metrics.jackknife import groups
from tgate_batch.metrics.moments import frechet_values, statistics
from tgate_batch.metrics.precision_recall import NEIGHBOURS, precision_recall, radii
from tgate_batch.output import layout, shapes
from tgate_batch.score.aggregate import SumsSource, summaries
from tgate_batch.score.extractor_facts import ExtractorFacts, enough_images
from tgate_batch.score.partial_sums import (
    NOTES,
    ArmSums,
    Chunk,
    FeatureSums,
    Sample,
    Sums,
    arrays_of,
    numbered,
)
from tgate_batch.score.reference import Reference
from tgate_batch.storage import Folder
from tgate_batch.storage.archives import Archive

VERSION = 1  # raise it when equal sums result in other figures


class ReferenceFigures:
    """A reference set, with the values that the distance of every arm needs, computed once."""

    def __init__(self, reference: Reference):
        self.reference = reference
        self._within = reference.within

    @cached_property
    def root(self) -> FrechetRoot:
        return FrechetRoot(self.reference.statistics)

    @cached_property
    def radii(self) -> np.ndarray | None:
        """``precision_recall.radii`` of the reference's sample; None if the sample is too small."""
        sample = self.reference.sample
        if self.reference.radii is not None or sample is None or len(sample) <= NEIGHBOURS:
            return self.reference.radii
        return radii(sample)

    def within(self, kernel: kid.Kernel) -> float:
        """Returns the mean of the extractor's kernel over pairs of the reference's sample."""
        if self._within is None:
            assert self.reference.sample is not None
            self._within = kid.mean_of_pairs(self.reference.sample, kernel)
        return self._within


@dataclass(frozen=True)
class ConcludeOrder:
    """An order to conclude an arm. ``baseline`` is None for the baseline itself."""

    source: SumsSource
    chunks: tuple[Chunk, ...]
    baseline: SumsSource | None
    references: Mapping[str, tuple[str, str]]  # extractor -> a reference file, its sha256
    extractors: tuple[ExtractorFacts, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.source.model, self.source.arm

    @property
    def identity(self) -> str:
        """A digest of everything that decides the conclusion."""
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
    """An arm's images compared with a reference set.

    Arrays are the 21 values of the jackknife: of all groups of prompts, then without each group.
    ``values`` and ``kernel`` are of all images of the arm. ``compared`` and ``kernel_compared`` are
    of the images that the baseline also has, ``baselines`` and ``kernel_baselines`` of the
    baseline's same images; None if both arms have the same images. Anything not computed is None.
    """

    count: int
    compared_count: int
    distance: float | None = None
    rank_deficient: tuple[str, ...] = ()  # "the arm", "the reference", or both
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
    named: Mapping[str, Any]  # failed, broken and most changed images, provenance, MACs
    sets: Mapping[str, SetFigures]  # by extractor
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def of_nothing(cls, model: str, arm: str) -> Conclusion:
        """Returns the conclusion of an arm without images."""
        empty = ArmSums()
        return cls(model, arm, {}, {key: getattr(empty, key) for key in NOTES}, {})

    def save(self, stream: Any, identity: str) -> None:
        """Writes it as ``.npz``."""
        sets: dict[str, dict[str, Any]] = {}
        parts: list[dict[str, np.ndarray]] = []
        for name, figures in self.sets.items():
            fields = asdict(figures)
            parts.append({k: v for k, v in fields.items() if isinstance(v, np.ndarray)})
            sets[name] = {k: v for k, v in fields.items() if k not in parts[-1]}
        about = {
            "identity": identity,
            "key": [self.model, self.arm],
            "sums": [list(key) for key in self.sums],
            "named": self.named,
            "sets": sets,
        }
        arrays = numbered(self.sums, parts)
        np.savez(stream, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, content: bytes, identity: str) -> Conclusion | None:
        """Reads the output of ``save``; None if it is damaged or has another identity."""
        try:
            archive = Archive(content)
            about = json.loads(str(archive["about"]))
            if about["identity"] != identity:
                return None
            shapes.check_shape(about["named"], shapes.RowNotes)
            sums = {tuple(key): archive[f"sum-{n}"] for n, key in enumerate(about["sums"])}
            sets = {}
            for number, (name, fields) in enumerate(about["sets"].items()):
                fields["rank_deficient"] = tuple(fields["rank_deficient"])
                sets[name] = SetFigures(**fields, **arrays_of(archive, number))
        except Exception:  # zip, format and end-of-file errors have no common base class
            return None
        model, arm = about["key"]
        return cls(model, arm, sums, about["named"], sets)


def stored_conclusion(folder: Folder, order: ConcludeOrder) -> Conclusion | None:
    """Returns the stored conclusion of an arm; None if there is none with the same identity."""
    content = folder.get(layout.conclusion(*order.key))
    return None if content is None else Conclusion.load(content, order.identity)


def conclude(
    folder: Folder,
    order: ConcludeOrder,
    references: Mapping[str, ReferenceFigures],
    baselines: dict[str, ArmSums],
) -> Conclusion:
    """Computes an arm's conclusion from its sums; saves ``mu`` and ``sigma``.

    The conclusion is stored unless a file was missing or a figure could not be computed. If the arm
    and the baseline have different images, the baseline's sums are needed too; ``baselines`` caches
    those of the current model.
    """
    sums, complete = _merged(folder, order.source, order.chunks)
    model, arm = order.key
    if order.baseline is None:
        baselines.clear()
        baselines[model] = sums
    sets, problems = {}, []
    for facts in order.extractors:
        features = sums.features.get(facts.name)
        if features is None or not features.moments.count:
            continue
        other = None
        differ = features.alone is not None or features.baseline_alone is not None
        if order.baseline is not None and differ:
            if model not in baselines:
                baselines.clear()
                baselines[model], _ = _merged(folder, order.baseline, order.chunks)
            other = baselines[model].features.get(facts.name)
        try:
            own = statistics(features.moments.total())
            if facts.kind == "frechet" and (own.count or 0) >= 2:
                with folder.create(layout.statistics(facts.name, *order.key)) as file:
                    own.save(file)
            reference = references.get(facts.name)
            sets[facts.name] = _set_figures(facts, features, other, reference, order.source)
        except UserError as error:
            problems.append(f"{' '.join(order.key)}, {facts.name}: {error}")
    if order.baseline is None:
        for features in sums.features.values():
            features.moments.pack()  # they stay in memory for the other arms
    conclusion = Conclusion(
        model,
        arm,
        sums.sums,
        {key: getattr(sums, key) for key in NOTES},
        sets,
        tuple(sums.damaged),
        tuple(dict.fromkeys(sums.missing)),
        tuple(problems),
    )
    if complete and not problems:
        with folder.create(layout.conclusion(*order.key)) as stream:
            conclusion.save(stream, order.identity)
    return conclusion


def _merged(folder: Folder, source: SumsSource, chunks: tuple[Chunk, ...]) -> tuple[ArmSums, bool]:
    """Merges all chunks in order; also returns True if every file existed."""
    merged, complete = ArmSums(), True
    for sums, whole in summaries(folder, source, chunks):
        merged.merge(sums)
        complete = complete and whole
    return merged, complete


def _set_figures(
    facts: ExtractorFacts,
    features: FeatureSums,
    baseline: FeatureSums | None,
    reference: ReferenceFigures | None,
    source: SumsSource,
) -> SetFigures:
    moments = features.moments
    count = moments.count
    both = count - (0 if features.alone is None else features.alone.count)
    figures: dict[str, Any] = {"count": count, "compared_count": both if source.baseline else 0}
    if reference is None or count < 2:
        return SetFigures(**figures)
    if facts.kind == "frechet":
        own, other = statistics(moments.total()), reference.reference.statistics
        figures["distance"] = frechet_distance(own, other)
        figures["rank_deficient"] = tuple(
            name
            for name, each in {"the arm": own, "the reference": other}.items()
            if rank_deficient(each)
        )
        if enough_images(count, facts.dimensions) and source.grouped:
            root = reference.root
            figures["values"] = frechet_values(moments, root)
            if baseline is not None and enough_images(both, facts.dimensions):
                figures["compared"] = frechet_values(moments, root, features.alone)
                figures["baselines"] = frechet_values(
                    baseline.moments, root, features.baseline_alone
                )
    return SetFigures(**figures, **_sample_figures(facts, features, baseline, reference, source))


def _sample_figures(
    facts: ExtractorFacts,
    features: FeatureSums,
    baseline: FeatureSums | None,
    reference: ReferenceFigures,
    source: SumsSource,
) -> dict[str, Any]:
    """Figures of the sample: CMMD or kernel distance, precision and recall."""
    rows = reference.reference.sample
    if rows is None:
        return {}
    is_cmmd = facts.kind == "cmmd"
    kernel = cmmd.gaussian_kernel if is_cmmd else kid.polynomial
    scale = cmmd.SCALE if is_cmmd else 1

    def values(sample: Sample, chosen: np.ndarray) -> np.ndarray | None:
        prompts = sample.places[chosen] // source.images_per_prompt
        sums = kid.kernel_sums(
            sample.rows[chosen], groups(prompts), prompts, rows, kernel, reference.within(kernel)
        )
        unscaled = sums.values()
        return None if unscaled is None else scale * unscaled

    sample = features.sample
    figures: dict[str, Any] = {"sample": len(sample.rows), "reference_sample": len(rows)}
    if is_cmmd:
        figures["distance"] = cmmd.cmmd(sample.rows, rows)
    else:
        shares = precision_recall(sample.rows, rows, reference_radii=reference.radii)
        figures["precision"], figures["recall"] = shares or (None, None)
    figures["kernel"] = values(sample, np.ones(len(sample.rows), bool))
    if baseline is not None:
        figures["kernel_compared"] = values(sample, sample.compared)
        same = np.isin(baseline.sample.places, sample.places[sample.compared])
        figures["kernel_baselines"] = values(baseline.sample, same)
    return figures
