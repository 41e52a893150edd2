"""How long a run is beside the ideal one, on simulated workers: its tail.

The workers are simulated; the pool, the tasks and the cut of the prompts are the run's own.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tgate_batch.config import Model
from tgate_batch.execute.pool import Pool, Send
from tgate_batch.execute.task import RenderTask
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.prompts.reader import shard_sizes

ARMS = {"baseline": 1.0, "tgate-v1": 0.62, "tgate": 0.5}  # arm -> seconds a picture, at speed 1
MIXED = (0.4, 0.7, 1.0, 1.6)  # speeds of some generations of GPUs


def bench_tail(prompts: int = 10_000, batch: int = 8, draws: int = 20) -> dict[str, Any]:
    """The makespan over the ideal (all work over summed speeds), loading left out.

    ``mixed`` is the worst of ``draws`` clusters of 100 workers whose speeds are drawn from
    ``MIXED``.
    """
    mixed = [np.random.default_rng(draw).choice(MIXED, 100).tolist() for draw in range(draws)]
    return {
        "100 workers": makespan_over_ideal(prompts, [1.0] * 100, batch),
        "256 workers": makespan_over_ideal(prompts, [1.0] * 256, batch),
        "100 of mixed speed": max(makespan_over_ideal(prompts, speeds, batch) for speeds in mixed),
        "shards": len(list(shard_sizes(prompts, 64, batch))),
    }


def makespan_over_ideal(
    prompts: int,
    speeds: Sequence[float],
    batch: int = 8,
    largest: int = 64,
    arms: Mapping[str, float] = ARMS,
) -> float:
    """Of a run of so many prompts under these arms, by workers of these speeds."""
    sizes = list(shard_sizes(prompts, largest, batch))
    model = Model(name="simulated")
    groups = (
        [RenderTask(model, ShardPlan(index, size, "", 0, 0), arm, "") for arm in arms]
        for index, size in enumerate(sizes)
    )
    pool = Pool(groups, len(sizes) * len(arms))
    speed = {f"worker {number}": each for number, each in enumerate(speeds)}
    for worker in speed:
        pool.joined(worker)
    ends: list[tuple[float, str]] = []  # of the task that each worker is at
    now = 0.0

    def begin(worker: str) -> None:
        if held := pool.tasks_of(worker):
            (task, *_) = held
            assert isinstance(task, RenderTask)
            seconds = task.shard.prompts * arms[task.arm] / speed[worker]
            heapq.heappush(ends, (now + seconds, worker))

    working: set[str] = set()
    while not pool.is_done:
        for decision in pool.decide():
            if isinstance(decision, Send) and decision.worker not in working:
                working.add(decision.worker)
                begin(decision.worker)
        now, worker = heapq.heappop(ends)
        pool.tick(now)
        pool.finished(worker, pool.tasks_of(worker)[0])
        working.discard(worker)
        if pool.tasks_of(worker):
            working.add(worker)
            begin(worker)
    return now * sum(speeds) / (prompts * sum(arms.values()))
