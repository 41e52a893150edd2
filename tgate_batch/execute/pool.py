"""The scheduler of tasks: a state machine that takes events and returns decisions.

It uses neither processes nor Ray, gets the time from its caller, and schedules every kind of task.
An executor reports what happened (a worker joined, delivered, finished, failed, died, left) and
carries out the decisions (send a task, give one up, replace a worker, stop).
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tgate_batch.config import Workers
from tgate_batch.execute.task import LIVES, STORAGE_LIVES, Result, Task

_TYPICAL_GAPS = 20  # a worker that reports nothing for this many typical gaps hangs
_GAPS_KEPT = 101  # gaps between two reports; the typical one is their median
_LONGEST_PAUSE = 60.0  # seconds, after storage errors
_LASTING_LIVES = 3  # pauses after which a full or read-only disk ends the run


@dataclass(frozen=True)
class Send:
    """Send this task to the worker."""

    worker: str
    task: Task


@dataclass(frozen=True)
class GiveUp:
    """The task failed too often; ``reason`` is that of the last failure."""

    task: Task
    reason: str

    def __str__(self) -> str:
        return f"{self.task} failed too often, the last time with {self.reason}"


@dataclass(frozen=True)
class ReplaceWorker:
    """The worker hangs, or failed at every recent task: end it, and start another one."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Stop:
    """Several workers in a row failed at every task, so the run stops.

    ``storage``: the storage was the cause.
    """

    reason: str
    storage: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        if self.storage:
            return self.reason
        return f"workers fail at everything, the last time with {self.reason}"


Decision = Send | GiveUp | ReplaceWorker | Stop


@dataclass
class _WorkerState:
    """The state of a worker."""

    last_report: float  # when it last reported, or got its first task
    tasks: deque[Task] = field(default_factory=deque)
    queue: deque[Task] = field(default_factory=deque)  # the rest of a group that it began
    proven: bool = False  # it has finished a task, so a failure may be the task's fault
    failures: int = 0  # in a row
    finished_elsewhere: int = 0  # the pool's count at the first of these failures


class Pool:
    """Distributes tasks to workers that may fail.

    A worker has up to ``in_flight`` tasks while there are plenty, so that it never waits for the
    driver. The tasks of a group go to one worker, unless others are idle. If a worker dies on
    several tasks, none is blamed: each runs alone from then on. A failed task goes to another
    worker if there is one, and is blamed only if its worker has finished another task. After a
    storage error, all workers pause. A task is never blamed if its machine ran out of memory.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[Task]],
        count: int,
        in_flight: int = 2,
        patience: float | None = None,
    ):
        """``groups`` of tasks are read one by one; ``count``: the number of tasks in them.

        The executor sets ``in_flight`` and ``patience``: the seconds for which a worker may report
        nothing, or longer if that is typical; None if there is no limit.
        """
        self.left = count
        self.deaths = 0
        self.memory_kills_in_a_row = 0  # of workers alone on their machine, since the last task
        self._source: Iterator[Sequence[Task]] = iter(groups)
        self._waiting: deque[Task] = deque()
        self._workers: dict[str, _WorkerState] = {}
        self.in_flight = in_flight
        self.patience = patience
        self._decided: list[Decision] = []
        self._now = 0.0
        self._gaps: deque[float] = deque(maxlen=_GAPS_KEPT)
        self._unsent = count
        self._finished = 0
        self._replaced = 0  # since a task was last finished
        self._pause, self._paused_until = 0.0, 0.0
        self._pauses = 0  # since a task was last finished
        self._pauses_for = ""

    @property
    def waits_for(self) -> str:
        """Why no worker gets a task now; empty if the pool does not pause."""
        return f"waiting: {self._pauses_for}" if self._now < self._paused_until else ""

    @property
    def is_done(self) -> bool:
        """True if every task is over and every decision was returned."""
        return self.left == 0 and not self._decided

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> "Pool":
        """Returns a pool of independent tasks."""
        return cls(([task] for task in tasks), len(tasks))

    def tasks_of(self, worker: str) -> tuple[Task, ...]:
        """Returns the tasks that a worker has, oldest first."""
        return tuple(self._workers[worker].tasks) if worker in self._workers else ()

    def tick(self, now: float) -> None:
        """Advances the pool's clock to ``now`` (monotonic seconds)."""
        self._now = now
        if self.patience is None:
            return
        limit = self.patience
        if self._gaps:
            limit = max(limit, _TYPICAL_GAPS * statistics.median(self._gaps))
        for worker, state in list(self._workers.items()):
            if state.tasks and now - state.last_report > limit:
                reason = f"the worker reported nothing for {limit:.0f} s"
                self.died(worker, reason)
                self._decided.append(ReplaceWorker(worker, reason))

    def decide(self) -> list[Decision]:
        """Returns what to do now. A sent task counts as the worker's from now on."""
        decided, self._decided = self._decided, []
        if self._now < self._paused_until:
            return decided
        for size in range(self.in_flight):
            if size and self._unsent <= 2 * len(self._workers):
                break  # the last tasks wait for the first idle worker
            for worker, state in self._workers.items():
                if len(state.tasks) == size and (task := self._next(worker)) is not None:
                    if not state.tasks:
                        state.last_report = self._now
                    state.tasks.append(task)
                    self._unsent -= 1
                    decided.append(Send(worker, task))
        return decided

    def joined(self, worker: str) -> None:
        """Adds a worker that is ready."""
        self._workers[worker] = _WorkerState(self._now)

    def left_by(self, worker: str) -> None:
        """Handles a worker that was closed; its tasks are retried, and none is blamed."""
        self._return(self._without_done(self._remove(worker)))

    def delivered(self, worker: str, task: Task, result: Result) -> bool:
        """Handles a result; returns True if it counts (a trial's does not)."""
        self._note_report(worker)
        return task.delivered(result)

    def finished(self, worker: str, task: Task) -> None:
        """Handles the end of a worker's task."""
        self._note_report(worker)
        state = self._workers[worker]
        state.failures, state.proven = 0, True
        state.tasks.remove(task)
        self._finished += 1
        self._replaced, self._pauses, self._pause = 0, 0, 0.0
        self.memory_kills_in_a_row = 0
        if task.finished():
            self.left -= 1
        else:
            self._return([task])

    def failed(
        self, worker: str, task: Task, reason: str, storage: bool = False, lasting: bool = False
    ) -> None:
        """Handles an error that concerns a whole task.

        ``storage``: a storage error; ``lasting``: one that does not end by waiting.
        """
        state = self._workers[worker]
        state.last_report = self._now
        state.tasks.remove(task)
        task.avoid.add(worker)
        if storage:
            self._start_pause(reason, _LASTING_LIVES if lasting else STORAGE_LIVES)
            retried = task.storage_failed()
        else:
            retried = task.failed() if state.proven else True
        self._retry_or_give_up(task, retried, reason)
        if state.failures == 0:
            state.finished_elsewhere = self._finished
        state.failures += 1
        others_can = not storage or self._finished > state.finished_elsewhere
        if state.failures >= LIVES and others_can:
            self._return(self._without_done(self._remove(worker)))
            self._replaced += 1
            stop = self._replaced >= LIVES
            self._decided.append(Stop(reason) if stop else ReplaceWorker(worker, reason))

    def died(self, worker: str, reason: str = "the worker's process died") -> None:
        """Handles the death of a worker's process."""
        self.deaths += 1
        tasks = self._without_done(self._remove(worker))
        for task in tasks:
            task.alone = True
        if len(tasks) == 1:
            (task,) = tasks
            self._retry_or_give_up(task, task.worker_died(reason), reason)
        else:
            self._return(tasks)

    def killed_for_memory(self, worker: str, crowded: bool) -> None:
        """Handles a worker that was killed because its machine ran out of memory.

        ``crowded``: other workers were on that machine, so one fewer may fit.
        """
        self.deaths += 1
        tasks = self._without_done(self._remove(worker))
        for task in tasks:
            task.alone = True
        self._return(tasks)
        if not crowded:
            self.memory_kills_in_a_row += 1

    def _note_report(self, worker: str) -> None:
        state = self._workers[worker]
        self._gaps.append(self._now - state.last_report)
        state.last_report = self._now

    def _start_pause(self, reason: str, lives: int) -> None:
        """Pauses all workers, each time for twice as long; a storage is away.

        After ``lives`` pauses without a finished task the run stops.
        """
        if self._now < self._paused_until:
            return
        self._pauses += 1
        self._pause = min(_LONGEST_PAUSE, max(1.0, 2 * self._pause))
        self._paused_until = self._now + self._pause
        self._pauses_for = reason
        if self._pauses >= lives:
            self._decided.append(Stop(reason, storage=True))

    def _retry_or_give_up(self, task: Task, retried: bool, reason: str) -> None:
        if retried:
            self._return([task])
        else:
            self.left -= 1
            self._decided.append(GiveUp(task, reason))

    def _return(self, tasks: list[Task]) -> None:
        """Queues tasks that were sent again, before all others."""
        self._waiting.extendleft(reversed(tasks))
        self._unsent += len(tasks)

    def _without_done(self, tasks: Iterable[Task]) -> list[Task]:
        """Returns the tasks without a result; a lost worker's results are kept."""
        left = [task for task in tasks if not task.done]
        self.left -= sum(task.done for task in tasks)
        return left

    def _remove(self, worker: str) -> list[Task]:
        """Removes a worker; returns its tasks."""
        state = self._workers.pop(worker, None)
        if state is None:
            return []
        self._waiting.extendleft(reversed(state.queue))
        return list(state.tasks)

    def _next(self, worker: str) -> Task | None:
        """Returns the next task for a worker; None if a suspected task must run alone."""
        state = self._workers[worker]
        if any(task.alone for task in state.tasks):
            return None
        if state.queue:
            return state.queue.popleft()
        if (task := self._waiting_for(worker)) is not None:
            return task
        if group := next(self._source, None):
            state.queue.extend(group[1:])
            return group[0]
        return self._steal() or self._waiting_for(worker, retry=True)

    def _waiting_for(self, worker: str, retry: bool = False) -> Task | None:
        """Returns the first queued task that the worker may get.

        ``retry``: also one that failed there before, if it failed on all others.
        """
        shared = bool(self._workers[worker].tasks)
        for position, task in enumerate(self._waiting):
            free = worker not in task.avoid or (retry and not self._workers.keys() - task.avoid)
            if free and not (task.alone and shared):
                del self._waiting[position]
                return task
        return None

    def _steal(self) -> Task | None:
        """Takes a queued task from the worker with the longest queue."""
        busiest = max(self._workers.values(), key=lambda state: len(state.queue))
        return busiest.queue.pop() if busiest.queue else None


def workers_wanted(limits: Workers, left: int) -> int:
    """Returns how many workers are useful for the remaining tasks, and allowed."""
    return min(limits.max or left, left)
