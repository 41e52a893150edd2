"""Who does what next: a state machine. Events go in, decisions come out.

It knows no clock, no process and no Ray, and serves rendering and measuring alike. An executor
tells it what happened (a worker joined, finished, failed, died, left) and does what it decides
(send a task, give one up, set a worker aside).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tgate_batch.config import Workers
from tgate_batch.execute.task import LIVES, Task


@dataclass(frozen=True)
class Send:
    """The worker is to get this task."""

    worker: str
    task: Task


@dataclass(frozen=True)
class GiveUp:
    """The task failed too often; ``reason`` is that of the last time."""

    task: Task
    reason: str


@dataclass(frozen=True)
class SetAside:
    """The worker failed at everything lately: end it, and start another."""

    worker: str


Decision = Send | GiveUp | SetAside


class Pool:
    """Tasks on their way through workers that may fail.

    A worker holds up to ``in_flight`` tasks, so that it never waits for the driver. Where a worker
    dies on several tasks, none is blamed: each runs alone from then on. A task that failed goes to
    another worker while there is one.
    """

    def __init__(self, tasks: Iterable[Task], count: int, in_flight: int = 2):
        """``tasks`` are taken one by one; ``count`` is how many there are."""
        self.left = count
        self.deaths = 0
        self._source: Iterator[Task] = iter(tasks)
        self._waiting: deque[Task] = deque()
        self._held: dict[str, deque[Task]] = {}
        self._failures: dict[str, int] = {}  # in a row, by worker
        self._in_flight = in_flight
        self._decided: list[Decision] = []

    @property
    def is_done(self) -> bool:
        """Whether every task is over, and everything decided was said."""
        return self.left == 0 and not self._decided

    def held(self, worker: str) -> tuple[Task, ...]:
        """The tasks that a worker holds, oldest first."""
        return tuple(self._held.get(worker, ()))

    def decide(self) -> list[Decision]:
        """What is to be done now. A task that is sent counts as held from here on."""
        decided, self._decided = self._decided, []
        for size in range(self._in_flight):
            for worker, tasks in self._held.items():
                if len(tasks) == size and (task := self._next(worker)) is not None:
                    tasks.append(task)
                    decided.append(Send(worker, task))
        return decided

    def joined(self, worker: str) -> None:
        """A worker is ready."""
        self._held[worker] = deque()
        self._failures[worker] = 0

    def left_by(self, worker: str) -> None:
        """A worker went on purpose; what it held is tried again, and nothing is to blame."""
        self._waiting.extendleft(reversed(self._remove(worker)))

    def delivered(self, worker: str, task: Task, piece: Any) -> bool:
        """A part of a task is done; returns whether it counts (a trial's does not)."""
        self._failures[worker] = 0
        return task.delivered(piece)

    def finished(self, worker: str, task: Task) -> None:
        """A worker did what it was told."""
        self._failures[worker] = 0
        self._held[worker].remove(task)
        if task.finished():
            self.left -= 1
        else:
            self._waiting.appendleft(task)

    def failed(self, worker: str, task: Task, reason: str) -> None:
        """A task raised an error that is none of its rows'."""
        self._held[worker].remove(task)
        task.avoid.add(worker)
        self._again_or_not(task, task.failed(), reason)
        self._failures[worker] += 1
        if self._failures[worker] >= LIVES:
            self._waiting.extendleft(reversed(self._remove(worker)))
            self._decided.append(SetAside(worker))

    def died(self, worker: str) -> None:
        """A worker's process is gone."""
        self.deaths += 1
        tasks = self._remove(worker)
        if len(tasks) == 1:
            (task,) = tasks
            task.alone = True
            self._again_or_not(task, task.worker_died(), "the worker's process died")
            return
        for task in tasks:
            task.alone = True
        self._waiting.extendleft(reversed(tasks))

    def _again_or_not(self, task: Task, again: bool, reason: str) -> None:
        if again:
            self._waiting.appendleft(task)
        else:
            self.left -= 1
            self._decided.append(GiveUp(task, reason))

    def _remove(self, worker: str) -> list[Task]:
        self._failures.pop(worker, None)
        return list(self._held.pop(worker, ()))

    def _next(self, worker: str) -> Task | None:
        """The next task for a worker, unless one under suspicion would have to share it."""
        held = self._held[worker]
        if any(task.alone for task in held):
            return None
        for position, task in enumerate(self._waiting):
            others = self._held.keys() - task.avoid
            if not (task.alone and held) and (worker in others or not others):
                del self._waiting[position]
                return task
        return next(self._source, None)


def workers_wanted(limits: Workers, room: int, left: int) -> int:
    """How many workers are useful and allowed, where the cluster has room for ``room``."""
    return min(limits.max or max(limits.min, room), left)
