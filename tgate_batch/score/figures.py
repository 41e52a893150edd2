"""An arm's scores: figures and intervals from its conclusion and the baseline's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.jackknife import (
    LEAST_BATCHES,
    LEAST_PROMPTS,
    estimate,
    paired_shares,
    ratios,
)
from tgate_batch.metrics.throughput import quantile
from tgate_batch.score import plot_data
from tgate_batch.score.conclusion import Conclusion, SetFigures
from tgate_batch.score.extractor_facts import ExtractorFacts, enough_images, not_comparable
from tgate_batch.score.partial_sums import Sums
from tgate_batch.score.reference import Reference

_SET_KEYS = (
    *("distance", "distance_label", "distance_note", "distance_corrected", "distance_change"),
    *("kid", "kid_change", "precision", "recall", "reference", "withheld"),
)


def scores(
    conclusion: Conclusion,
    baseline: Conclusion | None,
    metrics: tuple[ImageMetric, ...],
    extractors: tuple[ExtractorFacts, ...],
    references: Mapping[str, Reference],
) -> dict[str, Any]:
    """Returns an arm's scores as the output stores them; ``baseline`` is None for the baseline.

    A figure that was not measured is None. ``withheld`` has the reason for each figure that is left
    out on purpose.
    """
    arm = _ArmScores(conclusion, baseline)
    content = arm.rows() | arm.times() | arm.images(metrics) | arm.by_category(metrics)
    content |= plot_data.plot_data(conclusion.sums, metrics) | arm.most_changed()
    sets = {facts.name: arm.sets(facts, references.get(facts.name)) for facts in extractors}
    first = sets.pop(extractors[0].name) if extractors else dict.fromkeys(_SET_KEYS)
    value = first.pop("distance")
    official = (first["distance_label"] or "").startswith("FID-")
    content |= {"fid": value if official else None, "fd": None if official else value}
    withheld = arm.withheld | (first.pop("withheld") or {})
    return content | first | {"distances": sets or None, "withheld": withheld}


class _ArmScores:
    """Computes an arm's scores, section by section; ``withheld`` collects reasons."""

    def __init__(self, conclusion: Conclusion, baseline: Conclusion | None):
        self.withheld: dict[str, str] = {}
        self._conclusion = conclusion
        self._sums = conclusion.sums
        self._named = conclusion.named
        self._baseline = baseline
        self._prompts = int(_total(self._sums, "prompts"))
        self._compared = int(_total(self._sums, "prompts compared"))

    def rows(self) -> dict[str, Any]:
        sums, named = self._sums, self._named
        return {
            "model": self._conclusion.model,
            "arm": self._conclusion.arm,
            "images": int(_total(sums, "images")),
            "errors": int(_total(sums, "errors")),
            "error_rows": named["failed"],
            "error_kinds": self._error_kinds(),
            "broken": int(_total(sums, "broken")),
            "broken_rows": named["broken"],
            "prompts": self._prompts,
            "prompts_compared": self._compared if self._baseline else None,
            "macs_per_image": self._mean_macs("macs_per_image"),
            "macs_per_image_with_attention": self._mean_macs("macs_per_image_with_attention"),
            "made_by": named["made_by"],
        }

    def _error_kinds(self) -> list[dict[str, Any]]:
        """Each kind of error with its number of rows and one of its messages, most rows first."""
        counts = {key[1]: int(n) for key, n in self._sums.items() if key[0] == "failed"}
        messages = {row["error_kind"]: row["error"] for row in reversed(self._named["failed"])}
        return [
            {"kind": kind, "rows": rows, "error": messages.get(kind, kind)}
            for kind, rows in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]

    def _mean_macs(self, figure: str) -> int | None:
        """Mean over the rows; exact if all rows cost the same."""
        rows = {int(macs): count for macs, count in self._named["macs"].get(figure, {}).items()}
        if not rows:
            return None
        return round(sum(macs * count for macs, count in rows.items()) / sum(rows.values()))

    def most_changed(self) -> dict[str, Any]:
        """By metric: the images that differ most from the baseline's, worst first."""
        keys = ("prompt_id", "image_number", "shard", "value")
        return {
            "most_changed": {
                metric: [{key: image[key] for key in keys} for image in images]
                for metric, images in self._named["worst"].items()
            }
        }

    def times(self) -> dict[str, Any]:
        """Images per second, by groups of batches, without each worker's first batch."""
        sums = self._sums
        times: dict[str, Any] = {
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
            return times
        values = ratios(sums["time", "images"], sums["time", "seconds"])
        times["images_per_second_per_worker"] = float(values[0])
        times["batch_seconds_p50"] = quantile(sums["latency",], 0.5)
        times["batch_seconds_p95"] = quantile(sums["latency",], 0.95)
        few = _few_batches(sums)
        if few:
            self.withheld["images_per_second_interval"] = few
        else:
            times["images_per_second_interval"] = asdict(estimate(values))
        if self._baseline is not None and _total(self._baseline.sums, "time", "batches"):
            other = self._baseline.sums
            if few := few or _few_batches(other):
                self.withheld["speedup_interval"] = few
            else:
                slower = ratios(other["time", "images"], other["time", "seconds"])
                times["speedup_interval"] = asdict(estimate(values / slower))
        return times

    def images(self, metrics: tuple[ImageMetric, ...]) -> dict[str, Any]:
        """Means of per-image figures, and their mean changes over the images of both arms."""
        alone: dict[str, Any] = {}
        paired: dict[str, Any] = {}
        intervals: dict[str, Any] = {}
        changes: dict[str, Any] = {}
        for metric in metrics:
            if metric.needs_baseline and self._baseline is None:
                continue
            (paired if metric.needs_baseline else alone)[metric.name] = self._mean((), metric)
            intervals[metric.name] = self._interval(metric)
            if not metric.needs_baseline and self._baseline is not None:
                changes[metric.name] = self._change((), metric, self._compared)
        if (intervals or changes) and self._prompts < LEAST_PROMPTS:
            self.withheld["intervals"] = _few_prompts(self._prompts)
        if changes and self._compared < LEAST_PROMPTS:
            self.withheld["change"] = _few_prompts(self._compared)
        has_baseline = self._baseline is not None
        return alone | {
            "paired": paired if has_baseline else None,
            "intervals": intervals,
            "change": changes if has_baseline else None,
        }

    def by_category(self, metrics: tuple[ImageMetric, ...]) -> dict[str, Any]:
        """The same for each value of the column that the run is broken down by."""
        by_value = {}
        for name in dict.fromkeys(key[1] for key in self._sums if key[0] == "by"):
            prefix = ("by", name)
            prompts = int(_total(self._sums, *prefix, "prompts"))
            by_value[name] = {
                "prompts": prompts,
                **{m.name: self._mean(prefix, m) for m in metrics},
                "change": {
                    m.name: self._change(prefix, m, prompts)
                    for m in metrics
                    if self._baseline is not None and not m.needs_baseline
                },
            }
        return {"by": by_value or None}

    def sets(self, facts: ExtractorFacts, reference: Reference | None) -> dict[str, Any]:
        """Distances of the arm's images from a reference set under one extractor."""
        entry: dict[str, Any] = dict.fromkeys(_SET_KEYS)
        figures = self._conclusion.sets.get(facts.name)
        if figures is None or reference is None:
            return entry
        if figures.distance is None:
            few = figures.count < 2 or reference.sample is not None
            why = "it needs at least two images" if few else _no_sample(reference)
            return entry | {"withheld": {"distance": why}}
        is_frechet = facts.kind == "frechet"
        entry |= {
            "distance": figures.distance,
            "distance_label": f"{facts.label}-{figures.count if is_frechet else figures.sample}",
            "distance_note": _distance_note(facts, figures, reference),
            "precision": figures.precision,
            "recall": figures.recall,
            "reference": {
                "name": reference.name,
                "sha256": reference.sha256,
                "count": reference.statistics.count,
                "sample": figures.reference_sample or None,
            },
        }
        withheld: dict[str, str] = {}
        entry["withheld"] = withheld

        def add(key: str, values: np.ndarray | None, prompts: int, reason: str | None) -> None:
            """Adds the estimate of 21 values, or the reason why it is withheld."""
            if reason is None and prompts < LEAST_PROMPTS:
                reason = _few_prompts(prompts)
            if reason is not None:
                withheld[key] = reason
            elif values is not None:
                entry[key] = asdict(estimate(values))

        baseline = None if self._baseline is None else self._baseline.sets.get(facts.name)
        key, change = "distance_corrected", "distance_change"
        if is_frechet:
            add(key, figures.values, self._prompts, _few_images(figures.count, facts))
            if baseline is not None:
                own = (figures.values, figures.compared, figures.baselines)
                reason = _few_images(figures.compared_count, facts)
                add(change, _difference(*own, baseline.values), self._compared, reason)
            key, change = "kid", "kid_change"
        if reference.sample is None:
            names = (key, *([change] if baseline else []), "precision", "recall")
            withheld |= dict.fromkeys(names, _no_sample(reference))
            return entry
        add(key, figures.kernel, self._prompts, None)
        if baseline is not None:
            own = (figures.kernel, figures.kernel_compared, figures.kernel_baselines)
            add(change, _difference(*own, baseline.kernel), self._compared, None)
        if entry["kid"] is not None:
            entry["kid"] |= {"mean": entry["kid"]["value"], "pictures": figures.sample}
        return entry

    def _mean(self, prefix: tuple[str, ...], metric: ImageMetric) -> float | None:
        key = (*prefix, "figure", metric.name)
        return _quotient(_total(self._sums, *key, "sum"), _total(self._sums, *key, "count"))

    def _interval(self, metric: ImageMetric) -> dict[str, Any] | None:
        counts = self._sums.get(("figure", metric.name, "count"))
        few = self._prompts < LEAST_PROMPTS
        if counts is None or not counts.sum() or few or metric.yes_no:
            return None
        return asdict(estimate(ratios(self._sums["figure", metric.name, "sum"], counts)))

    def _change(
        self, prefix: tuple[str, ...], metric: ImageMetric, prompts: int
    ) -> dict[str, Any] | None:
        """The mean difference from the baseline's same images."""
        sums, key = self._sums, (*prefix, "change", metric.name)
        counts = sums.get((*key, "count"))
        if counts is None or not counts.sum():
            return None
        gained, lost = sums[*key, "gained"], sums[*key, "lost"]
        total = float(counts.sum())
        if metric.yes_no:
            change = paired_shares(counts, gained, lost, max(1.0, total / max(prompts, 1)))
            extra = {"gained": int(gained.sum()), "lost": int(lost.sum()), "count": int(total)}
        else:
            change, extra = estimate(ratios(sums[*key, "sum"], counts)), {}
        if prompts < LEAST_PROMPTS:
            return {"value": change.value, "low": None, "high": None, **extra}
        return asdict(change) | extra


def _distance_note(facts: ExtractorFacts, figures: SetFigures, reference: Reference) -> str | None:
    notes = [] if facts.note is None else [facts.note]
    if figures.rank_deficient:
        counts = {"the arm": figures.count, "the reference": reference.statistics.count}
        sizes = " and ".join(f"{counts[name]}" for name in figures.rank_deficient)
        notes.append(
            f"rank-deficient: {' and '.join(figures.rank_deficient)} ({sizes} images for "
            f"{facts.dimensions} dimensions); compare arms of one run, not runs of other sizes"
        )
    return "; ".join(notes) or None


def _no_sample(reference: Reference) -> str:
    return (
        f"reference {reference.name} has no features of single images. Fix: make it with "
        "tgate-batch reference"
    )


def _few_images(count: int, facts: ExtractorFacts) -> str | None:
    enough = enough_images(count, facts.dimensions)
    return None if enough else not_comparable(count, facts.dimensions)


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
    values: np.ndarray | None,
    compared: np.ndarray | None,
    baselines: np.ndarray | None,
    baseline_values: np.ndarray | None,
) -> np.ndarray | None:
    """The 21 changes of a distance over the images that both arms have; None if unknown."""
    mine = values if compared is None else compared
    other = baseline_values if baselines is None else baselines
    return None if mine is None or other is None else mine - other


def _total(sums: Sums, *key: str) -> float:
    return float(np.sum(sums[key])) if key in sums else 0.0


def _quotient(over: float, under: float) -> float | None:
    return over / under if under else None
