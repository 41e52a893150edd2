"""Creates the orders that aggregate and conclude a run's measurements; writes its scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tgate_batch.output import layout, seal
from tgate_batch.output.run import Run
from tgate_batch.score import aggregate
from tgate_batch.score.aggregate import SumOrder, SumsSource
from tgate_batch.score.conclusion import ConcludeOrder, Conclusion
from tgate_batch.score.extractor_facts import ExtractorFacts, enough_images
from tgate_batch.score.figures import scores
from tgate_batch.score.measurement_plan import MeasurementPlan, enter_folder
from tgate_batch.score.partial_sums import chunks
from tgate_batch.score.reference import Reference


def conclude_orders(
    run: Run,
    measurements: MeasurementPlan,
    references: Mapping[str, Reference],
    by: str | None,
) -> Iterator[ConcludeOrder]:
    """Yields one order per arm that has images; enters the folders of its sums into the ledger.

    ``references``: by extractor; ``by``: the stored column that figures are broken down by.
    """
    facts = measurements.facts
    files = {name: (reference.file, reference.sha256) for name, reference in references.items()}
    for model in run.config.models:
        sources = dict(_sources(run, measurements, facts, model.name, by))
        sampling = run.sampling(model.name)
        cut = tuple(chunks(run.shards, sampling.images_per_prompt, sampling.batch_size))
        baseline = sources.get(run.config.baseline or "")
        # The baseline first, because the other arms may need its sums.
        for source in sorted(sources.values(), key=lambda source: source is not baseline):
            enter_folder(run, layout.sums_of(source.model, source.arm), source.settings())
            other = None if source is baseline else baseline
            yield ConcludeOrder(source, cut, other, files, facts)


def write_scores(
    run: Run,
    measurements: MeasurementPlan,
    references: Mapping[str, Reference],
    conclusions: Mapping[tuple[str, str], Conclusion],
    missing: Mapping[str, str],
) -> None:
    """Writes the scores of every arm of the run into the output.

    ``missing``: requested figures that cannot be computed -> the reason.
    """
    metrics = tuple(metric for metric, _ in measurements.metrics)
    for model, arm, _ in run.pairs():
        key = (model.name, arm)
        own = conclusions.get(key) or Conclusion.of_nothing(*key)
        baseline = None
        if arm != run.config.baseline:
            baseline = conclusions.get((model.name, run.config.baseline or ""))
        content = scores(own, baseline, metrics, measurements.facts, references)
        content["withheld"] |= missing
        run.folder.write(layout.scores(*key), json.dumps(seal.with_seal(content), indent=2))


def reduce_orders(run: Run, orders: list[ConcludeOrder]) -> Iterator[SumOrder]:
    """Yields an order for each full chunk whose sums are not stored yet."""
    stored = set(run.folder.names(layout.SUMS))
    for order in orders:
        for chunk in order.chunks:
            if chunk.full and aggregate.summary_file(order.source, chunk) not in stored:
                yield SumOrder(order.source, chunk)


def _sources(
    run: Run,
    measurements: MeasurementPlan,
    facts: tuple[ExtractorFacts, ...],
    model: str,
    by: str | None,
) -> Iterator[tuple[str, SumsSource]]:
    """Yields each arm of a model that has images, with its measurements."""
    sampling = run.sampling(model)
    rendered = {
        arm: measurements.of_arm(run, model, arm)
        for arm in run.config.arms
        if layout.images(model, arm) in run.ledger
    }
    grouped = any(
        one.kind == "frechet" and enough_images(run.images_per_arm, one.dimensions) for one in facts
    )
    dimensions = {one.name: one.dimensions for one in facts}
    size = (sampling.images_per_prompt, sampling.batch_size)
    for arm, folders in rendered.items():
        other = None if arm == run.config.baseline else rendered.get(run.config.baseline or "")
        yield arm, SumsSource(model, arm, folders, other, dimensions, *size, grouped, by)
