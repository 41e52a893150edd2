"""Orders for workers that aggregate a run's measurements, and the writing of its scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tgate_batch.output import layout, seal
from tgate_batch.output.run import Run
from tgate_batch.score import aggregate
from tgate_batch.score.aggregate import SumOrder, SumsSource
from tgate_batch.score.figures import ConcludeOrder, Conclusion, Facts, enough_images, scores
from tgate_batch.score.measurement_plan import MeasurementPlan
from tgate_batch.score.partial_sums import chunks
from tgate_batch.score.reference import Reference


def conclude_orders(
    run: Run,
    measurements: MeasurementPlan,
    references: Mapping[str, Reference],
    by: str | None,
) -> Iterator[ConcludeOrder]:
    """One order an arm that has images. Enters the folders of its sums into the ledger.

    ``references``: by extractor; ``by``: the frozen column that figures are broken down by.
    """
    facts = tuple(Facts.of(extractor) for extractor in measurements.extractors.values())
    places = {name: (held.file, held.sha256) for name, held in references.items()}
    for model in run.config.models:
        sources = dict(_sources(run, measurements, facts, model.name, by))
        sampling = run.sampling(model.name)
        cut = tuple(chunks(run.shards, sampling.images_per_prompt, sampling.batch_size))
        baseline = sources.get(run.config.baseline or "")
        # The baseline first: its sums may be needed beside the others'.
        for source in sorted(sources.values(), key=lambda source: source is not baseline):
            _enter(run, source)
            beside = None if source is baseline else baseline
            yield ConcludeOrder(source, cut, beside, places, facts)


def write_scores(
    run: Run,
    measurements: MeasurementPlan,
    references: Mapping[str, Reference],
    found: Mapping[tuple[str, str], Conclusion],
    missing: Mapping[str, str],
) -> None:
    """Writes the scores of every arm of the run into the output.

    ``missing``: figures that were asked for and cannot be had -> why.
    """
    facts = tuple(Facts.of(extractor) for extractor in measurements.extractors.values())
    metrics = tuple(metric for metric, _ in measurements.metrics)
    for model, arm, _ in run.pairs():
        key = (model.name, arm)
        own = found.get(key) or Conclusion.of_nothing(*key)
        baseline = found.get((model.name, run.config.baseline or ""))
        beside = None if arm == run.config.baseline else baseline
        content = scores(own, beside, metrics, facts, references)
        content["withheld"] |= missing
        run.folder.write(layout.scores(*key), json.dumps(seal.with_seal(content), indent=2))


def reduce_orders(run: Run, orders: list[ConcludeOrder]) -> Iterator[SumOrder]:
    """The full chunks whose summaries are not kept yet."""
    held = set(run.folder.names(layout.SUMS))
    for order in orders:
        for chunk in order.chunks:
            if chunk.full and aggregate.summary_file(order.source, chunk) not in held:
                yield SumOrder(order.source, chunk)


def _enter(run: Run, source: SumsSource) -> None:
    """Sums of another kind are cleared: they are added up again."""
    folder, settings = layout.sums_of(source.model, source.arm), source.settings()
    if folder in run.ledger and run.ledger[folder] != settings:
        run.ledger.clear(folder)
    run.ledger.enter(folder, settings)


def _sources(
    run: Run,
    measurements: MeasurementPlan,
    facts: tuple[Facts, ...],
    model: str,
    by: str | None,
) -> Iterator[tuple[str, SumsSource]]:
    """Each arm of a model that has images, with where its measurements are."""
    sampling = run.sampling(model)
    drawn = {
        arm: measurements.of_arm(run, model, arm)
        for arm in run.config.arms
        if layout.images(model, arm) in run.ledger
    }
    for arm, folders in drawn.items():
        beside = None if arm == run.config.baseline else drawn.get(run.config.baseline or "")
        yield (
            arm,
            SumsSource(
                model,
                arm,
                folders,
                beside,
                {one.name: one.dimensions for one in facts},
                sampling.images_per_prompt,
                sampling.batch_size,
                any(
                    one.kind == "frechet" and enough_images(run.images_per_arm, one.dimensions)
                    for one in facts
                ),
                by,
            ),
        )
