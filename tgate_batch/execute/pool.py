"""Who does what next: a state machine. Events go in, decisions come out.

It knows no process and no Ray, is told the time, and serves rendering and measuring alike. An
executor tells it what happened (a worker joined, said something, finished, failed, died, left) and
does what it decides (send a task, give one up, set a worker aside, stop).
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tgate_batch.config import Workers
from tgate_batch.execute.task import LIVES, STORAGE_LIVES, Result, Task

_USUAL_PACES = 20  # a worker that says nothing for so many times the usual pace hangs
_REMEMBERED = 101  # gaps between two signs of life, of which the usual pace is the median
_LONGEST_PAUSE = 60.0  # seconds, after storage errors
_LASTING_LIVES = 3  # pauses after which a full or read-only disk ends the run


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

    def __str__(self) -> str:
        return f"{self.task} failed too often, the last time with {self.reason}"


@dataclass(frozen=True)
class SetAside:
    """The worker hangs, or failed at everything lately: end it, and start another."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Stop:
    """Worker after worker failed at everything: a further one would do no better.

    ``storage``: each time it was the storage.
    """

    reason: str
    storage: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        if self.storage:
            return self.reason
        return f"workers fail at everything, the last time with {self.reason}"


Decision = Send | GiveUp | SetAside | Stop


@dataclass
class _Seat:
    """What is known of a worker."""

    heard: float  # when it last said something, or began to have something to say
    tasks: deque[Task] = field(default_factory=deque)
    queue: deque[Task] = field(default_factory=deque)  # the rest of a group that it began
    proven: bool = False  # it has finished something, so a failure may be the task's
    failures: int = 0  # in a row
    finished_elsewhere: int = 0  # the pool's count at the first of these failures


class Pool:
    """Tasks on their way through workers that may fail.

    A worker holds up to ``in_flight`` tasks while there are plenty, so that it never waits for the
    driver. The tasks of a group go to one worker, unless others have nothing left to do.
    Where a worker dies on several tasks, none is blamed: each runs alone from then on. A task that
    failed goes to another worker while there is one, and is blamed only where its worker has done
    another. Where the storage is away, all wait a while. A task is never blamed where its machine
    ran out of memory.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[Task]],
        count: int,
        in_flight: int = 2,
        patience: float | None = None,
    ):
        """``groups`` of tasks are taken one by one; ``count`` is how many tasks there are.

        ``in_flight`` and ``patience`` are the executor's to set. ``patience``: seconds for which a
        worker may say nothing, however fast it usually is; None: for ever.
        """
        self.left = count
        self.deaths = 0
        self.memory_kills_in_a_row = 0  # of workers alone on their machine, since the last task
        self._source: Iterator[Sequence[Task]] = iter(groups)
        self._waiting: deque[Task] = deque()
        self._seats: dict[str, _Seat] = {}
        self.in_flight = in_flight
        self.patience = patience
        self._decided: list[Decision] = []
        self._now = 0.0
        self._gaps: deque[float] = deque(maxlen=_REMEMBERED)
        self._unsent = count
        self._finished = 0
        self._set_aside = 0  # since a task was last finished
        self._pause, self._paused_until = 0.0, 0.0
        self._pauses = 0  # since a task was last finished
        self._pauses_for = ""

    @property
    def waits_for(self) -> str:
        """Why nobody gets a task just now; empty where the pool does not rest."""
        return f"waiting: {self._pauses_for}" if self._now < self._paused_until else ""

    @property
    def is_done(self) -> bool:
        """Whether every task is over, and everything decided was said."""
        return self.left == 0 and not self._decided

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> "Pool":
        """Of tasks that have nothing to do with one another."""
        return cls(([task] for task in tasks), len(tasks))

    def tasks_of(self, worker: str) -> tuple[Task, ...]:
        """The tasks that a worker holds, oldest first."""
        return tuple(self._seats[worker].tasks) if worker in self._seats else ()

    def tick(self, now: float) -> None:
        """It is ``now``, in seconds of a clock that only goes forward."""
        self._now = now
        if self.patience is None:
            return
        limit = self.patience
        if self._gaps:
            limit = max(limit, _USUAL_PACES * statistics.median(self._gaps))
        for worker, seat in list(self._seats.items()):
            if seat.tasks and now - seat.heard > limit:
                self._hangs(worker, limit)

    def decide(self) -> list[Decision]:
        """What is to be done now. A task that is sent counts as held from here on."""
        decided, self._decided = self._decided, []
        if self._now < self._paused_until:
            return decided
        for size in range(self.in_flight):
            if size and self._unsent <= 2 * len(self._seats):
                break  # the last tasks wait for whoever is free first
            for worker, seat in self._seats.items():
                if len(seat.tasks) == size and (task := self._next(worker)) is not None:
                    if not seat.tasks:
                        seat.heard = self._now
                    seat.tasks.append(task)
                    self._unsent -= 1
                    decided.append(Send(worker, task))
        return decided

    def joined(self, worker: str) -> None:
        """A worker is ready."""
        self._seats[worker] = _Seat(self._now)

    def left_by(self, worker: str) -> None:
        """A worker went on purpose; what it held is tried again, and nothing is to blame."""
        self._return(self._without_done(self._remove(worker)))

    def delivered(self, worker: str, task: Task, result: Result) -> bool:
        """A worker said something of a task; returns whether it counts (a trial's does not)."""
        self._hear(worker)
        return task.delivered(result)

    def finished(self, worker: str, task: Task) -> None:
        """A worker did what it was told."""
        self._hear(worker)
        seat = self._seats[worker]
        seat.failures, seat.proven = 0, True
        seat.tasks.remove(task)
        self._finished += 1
        self._set_aside, self._pauses, self._pause = 0, 0, 0.0
        self.memory_kills_in_a_row = 0
        if task.finished():
            self.left -= 1
        else:
            self._return([task])

    def failed(
        self, worker: str, task: Task, reason: str, storage: bool = False, lasting: bool = False
    ) -> None:
        """A task raised an error that is none of its rows'.

        ``storage``: one of the storage; ``lasting``: one that does not end by waiting.
        """
        seat = self._seats[worker]
        seat.heard = self._now
        seat.tasks.remove(task)
        task.avoid.add(worker)
        if storage:
            self._rest(reason, _LASTING_LIVES if lasting else STORAGE_LIVES)
            again = task.storage_failed()
        else:
            again = task.failed() if seat.proven else True
        self._again_or_not(task, again, reason)
        if seat.failures == 0:
            seat.finished_elsewhere = self._finished
        seat.failures += 1
        others_can = not storage or self._finished > seat.finished_elsewhere
        if seat.failures >= LIVES and others_can:
            self._return(self._without_done(self._remove(worker)))
            self._decide_to_replace(worker, reason)

    def died(self, worker: str) -> None:
        """A worker's process is gone."""
        self._died(worker, "the worker's process died")

    def killed_for_memory(self, worker: str, crowded: bool) -> None:
        """A worker was ended because its machine ran out of memory.

        ``crowded``: others were on that machine, so with one worker fewer it may do.
        """
        self.deaths += 1
        tasks = self._without_done(self._remove(worker))
        for task in tasks:
            task.alone = True
        self._return(tasks)
        if not crowded:
            self.memory_kills_in_a_row += 1

    def _died(self, worker: str, reason: str) -> None:
        self.deaths += 1
        seat = self._seats.pop(worker)
        self._waiting.extendleft(reversed(seat.queue))
        tasks = self._without_done(seat.tasks)
        for task in tasks:
            task.alone = True
        if len(tasks) == 1:
            (task,) = tasks
            self._again_or_not(task, task.worker_died(reason), reason)
        else:
            self._return(tasks)

    def _hangs(self, worker: str, limit: float) -> None:
        reason = f"the worker said nothing for {limit:.0f} s"
        self._died(worker, reason)
        self._decided.append(SetAside(worker, reason))

    def _hear(self, worker: str) -> None:
        seat = self._seats[worker]
        self._gaps.append(self._now - seat.heard)
        seat.heard = self._now

    def _rest(self, reason: str, lives: int) -> None:
        """The storage is away: nobody gets a task for a while, each time for twice as long.

        After ``lives`` of these pauses without a finished task the run stops.
        """
        if self._now < self._paused_until:
            return
        self._pauses += 1
        self._pause = min(_LONGEST_PAUSE, max(1.0, 2 * self._pause))
        self._paused_until = self._now + self._pause
        self._pauses_for = reason
        if self._pauses >= lives:
            self._decided.append(Stop(reason, storage=True))

    def _decide_to_replace(self, worker: str, reason: str) -> None:
        self._set_aside += 1
        if self._set_aside >= LIVES:
            self._decided.append(Stop(reason))
        else:
            self._decided.append(SetAside(worker, reason))

    def _again_or_not(self, task: Task, again: bool, reason: str) -> None:
        if again:
            self._return([task])
        else:
            self.left -= 1
            self._decided.append(GiveUp(task, reason))

    def _return(self, tasks: list[Task]) -> None:
        """Puts tasks that were sent before all others that wait."""
        self._waiting.extendleft(reversed(tasks))
        self._unsent += len(tasks)

    def _without_done(self, tasks: Iterable[Task]) -> list[Task]:
        """Those that are not over: what a worker delivered before it went is kept."""
        left = [task for task in tasks if not task.done]
        self.left -= sum(task.done for task in tasks)
        return left

    def _remove(self, worker: str) -> list[Task]:
        """Forgets a worker; returns what it held."""
        seat = self._seats.pop(worker, None)
        if seat is None:
            return []
        self._waiting.extendleft(reversed(seat.queue))
        return list(seat.tasks)

    def _next(self, worker: str) -> Task | None:
        """The next task for a worker, unless one under suspicion would have to share it."""
        seat = self._seats[worker]
        if any(task.alone for task in seat.tasks):
            return None
        if seat.queue:
            return seat.queue.popleft()
        if (task := self._waiting_for(worker)) is not None:
            return task
        if group := next(self._source, None):
            seat.queue.extend(group[1:])
            return group[0]
        return self._taken_over() or self._waiting_for(worker, again=True)

    def _waiting_for(self, worker: str, again: bool = False) -> Task | None:
        """The first task that waits and may be this worker's.

        ``again``: also one that failed there before, if it did so on all others.
        """
        shared = bool(self._seats[worker].tasks)
        for position, task in enumerate(self._waiting):
            free = worker not in task.avoid or (again and not self._seats.keys() - task.avoid)
            if free and not (task.alone and shared):
                del self._waiting[position]
                return task
        return None

    def _taken_over(self) -> Task | None:
        """A task that another worker has not come to; of whoever has most of them."""
        richest = max(self._seats.values(), key=lambda seat: len(seat.queue))
        return richest.queue.pop() if richest.queue else None


def workers_wanted(limits: Workers, left: int) -> int:
    """How many workers are useful for so many tasks, and allowed."""
    return min(limits.max or left, left)
