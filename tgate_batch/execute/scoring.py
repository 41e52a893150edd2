"""Adds a run's measurements up on an executor's workers: chunks first, then each arm."""

import time
from collections.abc import Sequence
from typing import Any

from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.pool import GiveUp, Pool
from tgate_batch.execute.task import ConcludeTask, ReduceTask, Task
from tgate_batch.output.run import Run
from tgate_batch.score.figures import ConcludeOrder, Conclusion, kept
from tgate_batch.score.scoring import reduce_orders

_SECONDS_BETWEEN_LINES = 5.0

Conclusions = dict[tuple[str, str], Conclusion]  # by model and arm


def concluded(
    run: Run, orders: Sequence[ConcludeOrder], problems: dict[str, None], executor: Any
) -> Conclusions:
    """The conclusion of each order. Those that the output holds already are read.

    A run without a full chunk is added up in this process, unless the executor is open anyway.
    What could not be done joins the problems.
    """
    found: Conclusions = {}
    missing = []
    for order in orders:
        held = kept(run.folder, order)
        if held is None:
            missing.append(order)
        else:
            found[order.key] = held
    chunks = [ReduceTask(order) for order in reduce_orders(run, missing)]
    arms = [ConcludeTask(order) for order in missing]
    if not arms:
        return found
    if chunks or getattr(executor, "is_open", True):
        return found | _carried_out(executor, chunks, arms, problems)
    with LocalExecutor(run.config, run.folder) as local:
        return found | _carried_out(local, chunks, arms, problems)


def _carried_out(
    executor: Any,
    chunks: list[ReduceTask],
    arms: list[ConcludeTask],
    problems: dict[str, None],
) -> Conclusions:
    _run(executor, chunks, "parts added up", problems)
    found = _run(executor, arms, "arms scored", problems)
    return {(one.model, one.arm): one for one in found if isinstance(one, Conclusion)}


def _run(executor: Any, tasks: Sequence[Task], what: str, problems: dict[str, None]) -> list[Any]:
    """What workers say of the tasks; a line now and then says how far they are."""
    found: list[Any] = []
    said = time.monotonic()
    for piece in executor.run(Pool(tasks, len(tasks), executor.in_flight)):
        if isinstance(piece, GiveUp):
            problems[f"{piece.task} cannot be had: {piece.reason}"] = None
        elif piece is not None:
            found.append(piece)
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{len(found)}/{len(tasks)} {what}", flush=True)
    return found
