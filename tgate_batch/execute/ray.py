"""Many shards at once, under Ray. The only module that imports ray.

Actors, placement and the detection of dead workers are Ray's own. This module feeds tasks to a
pool of actors and decides what a failure means: a worker that dies costs its task one life; after
three, the shard is split to find the prompt it dies on, and that prompt becomes an error row.
"""

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.util

from tgate_batch.config import Config, Model, Workers
from tgate_batch.errors import UserError
from tgate_batch.execute.task import LIVES, Task
from tgate_batch.execute.worker import Worker
from tgate_batch.output.run import Run, missing, open_arms
from tgate_batch.records import Receipt

_IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
_POLL_SECONDS = 1.0


def start() -> None:
    """Joins the cluster that is there (``RAY_ADDRESS``, a job), else starts a local one."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" not in os.environ:
        # Ray would keep a local cluster's token in the home folder, and every `ray start` after
        # that would ask for it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)


def inside_job() -> bool:
    """Whether this process is the entry point of ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@dataclass
class _Seat:
    """An actor, and the tasks it holds, oldest first."""

    actor: Any
    starting: Any  # the reference that resolves when the actor stands
    tasks: deque[tuple[Any, Task]] = field(default_factory=deque)


class Pool:
    """A pool of workers between ``min`` and ``max``, as the cluster offers. A context manager."""

    def __init__(
        self,
        run: Run,
        renders: bool = True,
        open_runner: Callable[[Model, Config], Any] | None = None,
    ):
        """Workers start at once; if the pool ``renders``, with the first model that is to.

        ``open_arms`` is then what it has to render.

        Raises UserError where no worker could ever start.
        """
        start()
        self._run = run
        self._limits: Workers = run.config.workers
        self._arguments = (run, open_runner)
        self._seats: list[_Seat] = []
        self._kind = ray.remote(Worker).options(
            num_cpus=self._limits.cpus_each,
            num_gpus=self._limits.gpus_each,
            max_concurrency=_IN_FLIGHT,
            max_restarts=0,
        )
        self.deaths = 0
        self._failed_starts = 0
        _check_resources(self._limits)
        self.open_arms = open_arms(run) if renders else {}
        self._adjust(self._unrendered() or len(run.pairs()) * len(run.shards))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats.clear()

    def render(self) -> Iterator[Receipt | None]:
        """Renders what the run lacks. Yields receipts as files come to stand; None while waiting.

        Raises UserError where a model cannot be loaded, RuntimeError where a shard fails three
        times for a reason that is not one of its prompts (a full disk, say).
        """
        waiting: deque[Task] = deque()
        source = (Task(work) for work in missing(self._run, self.open_arms))
        left = self._unrendered()
        while left:
            self._adjust(left)
            for held in range(_IN_FLIGHT):
                for seat in self._standing():
                    if len(seat.tasks) == held:
                        self._feed(seat, waiting, source)
            for found in self._collect(waiting):
                if isinstance(found, Receipt):
                    yield found
                else:
                    left -= 1
            yield None

    def measure(self) -> Iterator[str | None]:
        """Measures every rendered shard. Yields, a shard, None or why it could not be measured.

        Raises UserError where a worker dies meanwhile.
        """
        jobs = [
            (model, arm, shard)
            for (model, arm), shards in self._run.standing().items()
            for shard in shards
        ]
        if not jobs:
            return
        self._adjust(len(jobs))
        while not (standing := self._standing()):
            self._adjust(len(jobs))
            ray.wait([seat.starting for seat in self._seats], num_returns=1)
        pool = ray.util.ActorPool([seat.actor for seat in standing])
        try:
            yield from pool.map_unordered(lambda actor, job: actor.measure.remote(*job), jobs)
        except ray.exceptions.RayActorError:
            raise UserError(
                "a worker died while measuring; what it had measured is kept: run jobs/score.py"
            ) from None

    def _unrendered(self) -> int:
        """How many (model, shard) lacked the file of some arm at the start."""
        return sum(map(len, self.open_arms.values()))

    def _adjust(self, left: int) -> None:
        """Grows to what is useful and allowed; lets go of workers that have nothing left to do."""
        least = self._limits.min
        wanted = min(self._limits.max or max(least, _room(self._limits)), left)
        while len(self._seats) < wanted:
            actor = self._kind.remote(*self._arguments)
            first = next((m for m in self._run.config.models if self.open_arms.get(m.name)), None)
            self._seats.append(_Seat(actor, actor.stand.remote(first)))
        idle = [seat for seat in self._seats if not seat.tasks]
        for seat in idle[: max(0, len(self._seats) - max(wanted, least))]:
            ray.kill(seat.actor)
            self._seats.remove(seat)

    def _feed(self, seat: _Seat, waiting: deque[Task], source: Iterator[Task]) -> None:
        """Sends one more task, unless one under suspicion would have to share the worker."""
        if any(task.alone for _, task in seat.tasks):
            return
        if not waiting and (fresh := next(source, None)) is not None:
            waiting.append(fresh)
        if waiting and not (waiting[0].alone and seat.tasks):
            task = waiting.popleft()
            seat.tasks.append((_send(task, seat.actor), task))

    def _standing(self) -> list[_Seat]:
        """The seats whose actor runs. Raises UserError where actors keep failing to start."""
        starting = {seat.starting: seat for seat in self._seats if seat.starting is not None}
        if starting:
            ready, _ = ray.wait(list(starting), num_returns=len(starting), timeout=0)
            for reference in ready:
                self._started(starting[reference])
        return [seat for seat in self._seats if seat.starting is None]

    def _started(self, seat: _Seat) -> None:
        try:
            ray.get(seat.starting)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            self._seats.remove(seat)
            self._failed_starts += 1
            if self._failed_starts >= LIVES:
                reason = " ".join(str(error).split())[-300:]
                raise UserError(f"workers: {LIVES} in a row did not start: {reason}") from None
        else:
            seat.starting = None
            self._failed_starts = 0

    def _collect(self, waiting: deque[Task]) -> Iterator[Receipt | Task]:
        """Whatever has arrived: receipts, and tasks that are finished."""
        streams = {stream: seat for seat in self._seats for stream, _ in seat.tasks}
        references = list(streams) + [
            seat.starting for seat in self._seats if seat.starting is not None
        ]
        if not references:
            time.sleep(_POLL_SECONDS)
            return
        ready, _ = ray.wait(references, num_returns=1, timeout=_POLL_SECONDS, fetch_local=False)
        for stream in ready:
            seat = streams.get(stream)
            if seat is None:
                continue
            task = next(task for held, task in seat.tasks if held is stream)
            try:
                receipt = ray.get(next(stream))
            except StopIteration:
                seat.tasks = deque(pair for pair in seat.tasks if pair[0] is not stream)
                if task.is_trial:
                    task.trial_survived()
                    waiting.appendleft(task)
                else:
                    yield task
            except ray.exceptions.RayActorError:
                self._bury(seat, waiting)
                return
            except ray.exceptions.RayTaskError as error:
                self._task_failed(error, seat, stream, task, waiting)
            else:
                if not task.is_trial:
                    task.arms_left.remove(receipt.arm)
                    yield receipt

    def _bury(self, seat: _Seat, waiting: deque[Task]) -> None:
        """Puts a dead worker's tasks back. Two tasks blame neither: each runs alone from now on."""
        self.deaths += 1
        self._seats.remove(seat)
        tasks = [task for _, task in seat.tasks]
        if len(tasks) == 1:
            tasks[0].worker_died()
        for task in tasks:
            task.alone = True
        waiting.extendleft(reversed(tasks))

    def _task_failed(
        self, error: Exception, seat: _Seat, stream: Any, task: Task, waiting: deque[Task]
    ) -> None:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        task.errors += 1
        if task.errors >= LIVES:
            shard = task.work.shard.name
            raise RuntimeError(f"{shard} failed {LIVES} times; the last time with: {cause!r}")
        seat.tasks = deque(pair for pair in seat.tasks if pair[0] is not stream)
        waiting.appendleft(task)


def _send(task: Task, actor: Any) -> Any:
    """The stream of the task's receipts."""
    return actor.render.options(num_returns="streaming").remote(
        task.work.model, task.shard, tuple(task.arms_left), task.quarantined, not task.is_trial
    )


def _room(workers: Workers) -> int:
    """How many workers the cluster as it stands has room for."""
    total = ray.cluster_resources()
    room = int(total.get("CPU", 0) // workers.cpus_each)
    if workers.gpus_each:
        room = min(room, int(total.get("GPU", 0) / workers.gpus_each))
    return room


def _check_resources(workers: Workers) -> None:
    """A local Ray never grows: what does not fit it will never start."""
    if not inside_job() and len(ray.nodes()) == 1 and _room(workers) == 0:
        total = ray.cluster_resources()
        raise UserError(
            f"workers: each asks {workers.cpus_each} CPU and {workers.gpus_each:g} GPU, and this "
            f"machine offers {total.get('CPU', 0):g} and {total.get('GPU', 0):g}; lower "
            "workers.cpus_each or workers.gpus_each (0 renders on the CPU)"
        )
