"""Many workers at once, under Ray. The only module that imports ray.

Actors, placement and the detection of dead workers are Ray's own. What a failure means is the
pool's to decide; this module tells it what happened, and does what it decides.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from tgate_batch.config import Config, Model, Workers
from tgate_batch.errors import DeviceLost, UserError
from tgate_batch.execute.pool import GiveUp, Pool, Send, SetAside, Stop, workers_wanted
from tgate_batch.execute.task import LIVES, Task, reason_of
from tgate_batch.execute.worker import Worker
from tgate_batch.storage import Folder, for_workers, is_outage

_IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
_POLL_SECONDS = 1.0
_ROOM_SECONDS = 2.0  # between questions about the cluster's size


def start() -> bool:
    """Joins the cluster that is there (``RAY_ADDRESS``, a job), else starts a local one.

    Returns False where that was done before.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" not in os.environ:
        # Ray would keep a local cluster's token in the home folder, and every `ray start` after
        # that would ask for it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    return True


def inside_job() -> bool:
    """Whether this process is the entry point of ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


class _RayWorker(Worker):
    """A worker in an actor: where its device is lost, its process ends, and a fresh one goes on."""

    def render(self, order: Any) -> Iterator[Any]:
        try:
            yield from super().render(order)
        except DeviceLost:
            os._exit(1)


@dataclass
class _Seat:
    """An actor, and the streams of the tasks that it holds."""

    name: str
    actor: Any
    starting: Any  # the reference that resolves when the actor is ready; None once it is
    pid: int = 0
    streams: dict[Any, Task] = field(default_factory=dict)


class RayExecutor:
    """Workers between ``min`` and ``max``, as the cluster offers. A context manager."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        first: Model | None = None,
        open_runner: Callable[[Model, Config], Any] | None = None,
        held: Callable[[int], None] = lambda workers: None,
    ):
        """The first worker starts at once, with the model ``first``. ``held`` is told how many
        workers there are: those asked for, as far as the cluster has room.

        Raises UserError where no worker could ever start.
        """
        self._started_ray = start()
        self._limits = config.workers
        self._first = first
        self._held = held
        self._arguments = (config, folder, open_runner)
        self._seats: dict[str, _Seat] = {}
        self._started = 0
        self._failed_starts = 0
        self._ask_room_at, self._known_room = 0.0, 0
        self._kind: Any = ray.remote(_RayWorker).options(
            num_cpus=self._limits.cpus_each,
            num_gpus=self._limits.gpus_each,
            max_concurrency=_IN_FLIGHT,
            max_restarts=0,
        )
        _check_resources(self._limits)
        self._open()
        held(1)

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._seats):
            self._close(name)
        if self._started_ray:
            ray.shutdown()

    def fingerprint(self, model: Model) -> str | None:
        """Loads a model in one worker, and returns the fingerprint of its files.

        Raises UserError where it cannot be loaded.
        """
        while True:
            if not self._seats:
                self._open()
            seat = next(iter(self._seats.values()))
            try:
                return ray.get(seat.actor.fingerprint.remote(model))
            except ray.exceptions.RayError as error:
                self._start_failed(seat, error)

    def run(self, pool: Pool) -> Iterator[Any]:
        """Works until the pool is done. Yields what workers deliver, tasks given up, the decision
        to stop, and None now and then while it waits.

        Raises UserError where workers keep failing to start.
        """
        pool.in_flight, pool.patience = _IN_FLIGHT, self._limits.hang_after
        pool.tick(time.monotonic())
        for seat in self._seats.values():
            if seat.starting is None:
                pool.joined(seat.name)
        while not pool.is_done:
            self._adjust(pool)
            pool.tick(time.monotonic())
            for decision in pool.decide():
                if isinstance(decision, Send):
                    self._send(decision)
                elif isinstance(decision, SetAside):
                    self._close(decision.worker)
                elif isinstance(decision, GiveUp):
                    yield decision
                elif isinstance(decision, Stop):
                    yield decision
                    return
            yield from self._collect(pool)
            yield None

    def pids(self) -> list[int]:
        """The process ids of the workers that are ready."""
        return [seat.pid for seat in self._seats.values() if seat.starting is None]

    def _open(self) -> None:
        actor = self._kind.remote(*self._arguments)
        self._started += 1
        name = f"worker {self._started}"
        self._seats[name] = _Seat(name, actor, actor.load.remote(self._first))

    def _close(self, name: str) -> None:
        if seat := self._seats.pop(name, None):
            ray.kill(seat.actor)

    def _adjust(self, pool: Pool) -> None:
        """Grows to what is useful and allowed; lets go of workers that have nothing left to do."""
        wanted = workers_wanted(self._limits, self._room(), pool.left)
        while len(self._seats) < wanted:
            self._open()
        self._held(min(len(self._seats), max(1, self._room())))
        idle = [name for name, seat in self._seats.items() if not seat.streams]
        for name in idle[: max(0, len(self._seats) - max(wanted, self._limits.min))]:
            pool.left_by(name)
            self._close(name)

    def _room(self) -> int:
        """How many workers the cluster has room for, asked once in a while."""
        now = time.monotonic()
        if now >= self._ask_room_at:
            self._known_room = _room(self._limits)
            self._ask_room_at = now + _ROOM_SECONDS
        return self._known_room

    def _send(self, decision: Send) -> None:
        seat, task = self._seats[decision.worker], decision.task
        method = getattr(seat.actor, task.action)
        stream = method.options(num_returns="streaming").remote(task.order())
        seat.streams[stream] = task

    def _collect(self, pool: Pool) -> Iterator[Any]:
        """Waits a moment for whatever arrives, and tells the pool."""
        streams = {stream: seat for seat in self._seats.values() for stream in seat.streams}
        starting = {
            seat.starting: seat for seat in self._seats.values() if seat.starting is not None
        }
        references = [*streams, *starting]
        if not references:
            time.sleep(_POLL_SECONDS)
            return
        ready, _ = ray.wait(references, num_returns=1, timeout=_POLL_SECONDS, fetch_local=False)
        for reference in ready:
            if reference in starting:
                self._joined(pool, starting[reference])
            else:
                yield from self._arrived(pool, streams[reference], reference)

    def _joined(self, pool: Pool, seat: _Seat) -> None:
        try:
            seat.pid = ray.get(seat.starting)
        except ray.exceptions.RayError as error:
            self._start_failed(seat, error)
        else:
            seat.starting = None
            self._failed_starts = 0
            pool.joined(seat.name)

    def _start_failed(self, seat: _Seat, error: Exception) -> None:
        """Raises UserError where the reason is the user's, or workers keep failing to start."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        self._close(seat.name)
        self._failed_starts += 1
        if self._failed_starts >= LIVES:
            reason = " ".join(str(error).split())[-300:]
            raise UserError(f"workers: {LIVES} in a row did not start: {reason}") from None

    def _arrived(self, pool: Pool, seat: _Seat, stream: Any) -> Iterator[Any]:
        task = seat.streams[stream]
        try:
            piece = ray.get(next(stream))
        except StopIteration:
            del seat.streams[stream]
            pool.finished(seat.name, task)
        except ray.exceptions.RayActorError:
            del self._seats[seat.name]
            pool.died(seat.name)
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            del seat.streams[stream]
            reason = "; ".join(filter(None, (reason_of(cause), for_workers(cause))))
            pool.failed(seat.name, task, reason, is_outage(cause))
        else:
            if pool.delivered(seat.name, task, piece):
                yield piece


def _room(workers: Workers) -> int:
    """How many workers the cluster has room for now."""
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
