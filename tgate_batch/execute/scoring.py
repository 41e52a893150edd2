"""Aggregates a run's measurements on an executor's workers: chunks first, then each arm."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from tgate_batch.execute.executor import Executor
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.pool import GiveUp, Pool, Stop
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.task import ChunkSummed, ConcludeTask, Result, SumTask, Task
from tgate_batch.output.run import Run
from tgate_batch.score.conclusion import ConcludeOrder, Conclusion, stored_conclusion
from tgate_batch.score.scoring import reduce_orders


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
        sums = _run(executor, chunks, "parts are summed", problems)
        arms = [ConcludeTask(order) for order in missing]
        results = _run(executor, arms, "arms are concluded", problems)
    new = [one for one in results if isinstance(one, Conclusion)]
    chunk_names = (one.damaged for one in sums if isinstance(one, ChunkSummed))
    damaged = [name for names in (*chunk_names, *(one.damaged for one in new)) for name in names]
    lacking = dict.fromkeys(name for one in new for name in one.missing if name not in damaged)
    concluded = known | {(one.model, one.arm): one for one in new}
    return Conclusions(concluded, tuple(damaged), tuple(lacking))


def _run(
    executor: Executor, tasks: Sequence[Task], what: str, problems: dict[str, None]
) -> list[Result]:
    """Returns the results of the tasks, and logs the progress."""
    results: list[Result] = []
    progress = WorkCounter("scoring", what, len(tasks))
    for event in executor.run(Pool.of(tasks)):
        if isinstance(event, GiveUp | Stop):
            problems[str(event)] = None
        elif event is None:
            progress.tick()
        else:
            results.append(event)
            progress.add()
    return results
