"""Measures a run's images on an executor's workers, aggregates the measurements, writes scores."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from tgate_batch import console
from tgate_batch.errors import UserError
from tgate_batch.execute.executor import Executor
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.pool import GiveUp, Pool, Stop
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.reference import prepare_reference
from tgate_batch.execute.task import (
    ChunkSummed,
    ConcludeTask,
    MeasureTask,
    Result,
    SumTask,
    Task,
)
from tgate_batch.output.prompt_store import category_column
from tgate_batch.output.run import Finished, Run, damaged_files, finished, note_damaged
from tgate_batch.score.conclusion import ConcludeOrder, Conclusion, stored_conclusion
from tgate_batch.score.measure import Measured
from tgate_batch.score.measurement_plan import (
    MeasurementPlan,
    expected_measurements,
    missing_distance,
    orders,
)
from tgate_batch.score.scoring import conclude_orders, reduce_orders, write_scores


def measure_pending(
    run: Run, measurements: MeasurementPlan, executor: Executor, rendered: Finished | None = None
) -> dict[str, None]:
    """Measures what is missing; returns why some of it cannot be measured, each reason once.

    ``rendered``: the finished shards, if the caller has read them and nothing was rendered since.
    """
    rendered = finished(run) if rendered is None else rendered
    tasks = [MeasureTask(model, order) for model, order in orders(run, measurements, rendered)]
    problems = dict.fromkeys(measurements.problems)
    if not tasks:
        return problems
    damaged = damaged_files(run.folder)
    failures: dict[str, None] = {}
    progress = WorkCounter("measuring", "shards", len(tasks))
    for result in _run(executor, tasks, progress, failures):
        if isinstance(result, Measured):
            problems |= dict.fromkeys(result.problems)
            damaged |= result.damaged
    progress.log()
    note_damaged(run.folder, damaged)
    return problems | {f"some cannot be measured: {failure}": None for failure in failures}


def conclude(
    run: Run, measurements: MeasurementPlan, problems: dict[str, None], executor: Executor
) -> bool:
    """Aggregates the measurements and writes the scores.

    Returns True if some measurements are damaged or lost. What cannot be computed is added to
    ``problems``.
    """
    references, missing = {}, dict(measurements.missing)
    for name, extractor in measurements.extractors.items():
        try:
            reference = prepare_reference(run, name, extractor, executor)
        except UserError as error:
            problems[str(error)] = None
            missing[missing_distance(name)] = str(error)
        else:
            if reference is not None:
                references[extractor.name] = reference
    by = run.config.score.by
    if by is not None and category_column(run.ledger) != by:
        problems[
            f"score.by: the output's prompts do not have the column {by!r}. Fix: run tgate-batch "
            "render again, which adds it"
        ] = None
        by = None
    wanted = list(conclude_orders(run, measurements, references, by))
    conclusions = conclude_arms(run, wanted, problems, executor)
    write_scores(run, measurements, references, conclusions.arms, missing)
    for conclusion in conclusions.arms.values():
        problems |= dict.fromkeys(conclusion.problems)
    for name in conclusions.damaged:
        console.warning(f"{name} was damaged; tgate-batch score measures it again")
    lost = expected_measurements(run, conclusions.missing)
    if lost:
        console.error(
            f"{len(lost):,} measurements were missing when sums were made (first: {lost[0]}), so "
            "the figures lack their images. Fix: check the storage, then run tgate-batch score "
            "again"
        )
    return bool(conclusions.damaged or lost)


class Conclusions(NamedTuple):
    """Conclusions by model and arm, and the measurements that they lack.

    ``damaged``: could not be read, and were deleted. ``missing``: do not exist.
    """

    arms: dict[tuple[str, str], Conclusion]
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def conclude_arms(
    run: Run, orders: Sequence[ConcludeOrder], problems: dict[str, None], executor: Executor
) -> Conclusions:
    """Returns the conclusion of each order; those already in the output are read.

    A run without a full chunk is aggregated in this process, unless the executor is open. What
    could not be done is added to ``problems``.
    """
    stored = {order.key: stored_conclusion(run.folder, order) for order in orders}
    known = {key: one for key, one in stored.items() if one is not None}
    missing = [order for order in orders if order.key not in known]
    if not missing:
        return Conclusions(known)
    chunks = [SumTask(order) for order in reduce_orders(run, missing)]
    with ExitStack() as stack:
        if not chunks and not executor.is_open:
            executor = stack.enter_context(LocalExecutor(run.config, run.folder))
        counter = WorkCounter("scoring", "parts are summed", len(chunks))
        sums = list(_run(executor, chunks, counter, problems))
        arms = [ConcludeTask(order) for order in missing]
        counter = WorkCounter("scoring", "arms are concluded", len(arms))
        results = list(_run(executor, arms, counter, problems))
    new = [one for one in results if isinstance(one, Conclusion)]
    chunk_names = (one.damaged for one in sums if isinstance(one, ChunkSummed))
    damaged = [name for names in (*chunk_names, *(one.damaged for one in new)) for name in names]
    lacking = dict.fromkeys(name for one in new for name in one.missing if name not in damaged)
    concluded = known | {(one.model, one.arm): one for one in new}
    return Conclusions(concluded, tuple(damaged), tuple(lacking))


def _run(
    executor: Executor, tasks: Sequence[Task], progress: WorkCounter, problems: dict[str, None]
) -> Iterator[Result]:
    """Yields and counts the results of the tasks; failures are added to ``problems``."""
    for event in executor.run(Pool.of(tasks)):
        if isinstance(event, GiveUp | Stop):
            problems[str(event)] = None
        elif event is None:
            progress.tick()
        else:
            progress.add()
            yield event
