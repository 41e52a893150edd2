"""Adds a run's measurements up on an executor's workers: chunks first, then each arm."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.pool import GiveUp, Pool, Stop
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.task import ConcludeTask, ReduceTask, Task
from tgate_batch.output.run import Run
from tgate_batch.score.conclusion import ConcludeOrder, Conclusion, stored_conclusion
from tgate_batch.score.scoring import reduce_orders


class Conclusions(NamedTuple):
    """Conclusions by model and arm, and the measurements that they lack.

    ``damaged``: could not be read, and are gone. ``missing``: were not found.
    """

    arms: dict[tuple[str, str], Conclusion]
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def conclude_arms(
    run: Run, orders: Sequence[ConcludeOrder], problems: dict[str, None], executor: Any
) -> Conclusions:
    """The conclusion of each order. Those that the output holds already are read.

    A run without a full chunk is added up in this process, unless the executor is open anyway.
    What could not be done joins the problems.
    """
    held = {order.key: stored_conclusion(run.folder, order) for order in orders}
    known = {key: one for key, one in held.items() if one is not None}
    missing = [order for order in orders if order.key not in known]
    if not missing:
        return Conclusions(known)
    chunks = [ReduceTask(order) for order in reduce_orders(run, missing)]
    with ExitStack() as stack:
        if not chunks and not getattr(executor, "is_open", True):
            executor = stack.enter_context(LocalExecutor(run.config, run.folder))
        lost = _run(executor, chunks, "parts are added up", problems)
        arms = [ConcludeTask(order) for order in missing]
        found = _run(executor, arms, "arms are concluded", problems)
    damaged = [name for names in (*lost, *(one.damaged for one in found)) for name in names]
    lacking = dict.fromkeys(name for one in found for name in one.missing if name not in damaged)
    concluded = known | {(one.model, one.arm): one for one in found}
    return Conclusions(concluded, tuple(damaged), tuple(lacking))


def _run(executor: Any, tasks: Sequence[Task], what: str, problems: dict[str, None]) -> list[Any]:
    """What workers say of the tasks; lines tell how far they are."""
    found: list[Any] = []
    progress = WorkCounter("scoring", what, len(tasks))
    for piece in executor.run(Pool.of(tasks)):
        if isinstance(piece, GiveUp | Stop):
            problems[str(piece)] = None
        elif piece is None:
            progress.tick()
        else:
            found.append(piece)
            progress.add()
    return found
