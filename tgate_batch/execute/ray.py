"""Many workers at once, under Ray.

Actors, placement and the detection of dead workers are Ray's own. What a failure means is the
pool's to decide; this module tells it what happened, and does what it decides.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
import ray.exceptions

from tgate_batch import console
from tgate_batch.config import Config, Model
from tgate_batch.errors import DeviceLost, NoRoom, OutputLost, UserError
from tgate_batch.execute import orphan_reaper
from tgate_batch.execute.cluster import Cluster, first_sentence, start, stop
from tgate_batch.execute.executor import Event
from tgate_batch.execute.pool import GiveUp, Pool, ReplaceWorker, Send, Stop, workers_wanted
from tgate_batch.execute.task import LIVES, MEMORY_LIVES, RenderOrder, Task, reason_of
from tgate_batch.execute.worker import Worker
from tgate_batch.output import shutdown
from tgate_batch.records import ShardProgress, ShardResult
from tgate_batch.storage import Folder, for_workers, is_lasting, is_outage, is_temporary

_IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
_POLL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60  # after workers that did not start
_ENDING_SECONDS = 2.0  # for killed workers to be gone


class _RayWorker(Worker):
    """A worker in an actor: where its device is lost, its process ends, and a fresh one goes on.

    On SIGTERM it leaves at once: its tasks go to others.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        shutdown.watch([signal.SIGTERM], _leave)

    def begin(self, model: Model | None) -> tuple[str, int]:
        """Loads the model, if one is given. Returns Ray's id of the node, and the process id.

        Raises UserError where the model cannot be loaded.
        """
        return ray.get_runtime_context().get_node_id(), self.load(model)

    def render(self, order: RenderOrder) -> Iterator[ShardProgress | ShardResult]:
        try:
            yield from super().render(order)
        except DeviceLost:
            os._exit(1)


@dataclass
class _Seat:
    """An actor, and the streams of the tasks that it holds."""

    name: str
    actor: Any
    placed: Any  # the reference that resolves when the actor's process runs
    starting: Any  # the reference that resolves when the actor is ready; None once it is
    node: str = ""
    pid: int = 0
    streams: dict[Any, Task] = field(default_factory=dict)


class RayExecutor:
    """Between ``min`` and ``max`` workers, as many as the cluster has room for."""

    apart = True
    is_open = True

    def __init__(
        self,
        config: Config,
        folder: Folder,
        first: Model | None = None,
        open_runner: Callable[[Model, Config], Any] | None = None,
        on_workers_changed: Callable[[int], None] = lambda workers: None,
        on_memory_kill: Callable[[], None] = lambda: None,
    ):
        """Starts the first worker with the model ``first``.

        ``on_workers_changed`` is called with the number of workers that the cluster has room for;
        ``on_memory_kill`` for each worker that Ray ends because its machine ran out of memory.
        Raises UserError if no worker could ever start, and ClusterLost.
        """
        self._started_ray = start()
        self._cluster = Cluster(config.workers)
        self._limits = config.workers
        self._first = first
        self._on_workers_changed = on_workers_changed
        self._on_memory_kill = on_memory_kill
        self._arguments = (config, folder, open_runner)
        self._seats: dict[str, _Seat] = {}
        self._started = 0
        self._failed_starts = 0
        self._open_again_at = 0.0
        self._ever_ready = False
        self._kind: Any = ray.remote(_RayWorker)
        self._options: dict[str, Any] = {
            "num_cpus": self._limits.cpus_each,
            "num_gpus": self._limits.gpus_each,
            "max_concurrency": _IN_FLIGHT,
            "max_restarts": 0,
        }
        try:
            self._open()
        except Exception as error:
            self.__exit__(type(error), error, None)
            raise
        on_workers_changed(1)

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Ends the workers. Raises ClusterLost where an error comes of that."""
        if lost := self._cluster.lost_by(error):
            orphan_reaper.end_processes(self._workers_here(), 0)
            stop(at_once=True)
            raise lost from None
        self._end_workers()
        self._cluster.close()
        if self._started_ray:
            stop(at_once=shutdown.is_shutting_down())

    def fingerprint(self, model: Model) -> str | None:
        """Loads a model in one worker, and returns the fingerprint of its files.

        Raises UserError where it cannot be loaded, and ClusterLost.
        """
        while True:
            if not self._seats:
                time.sleep(max(0.0, self._open_again_at - time.monotonic()))
                self._open()
            seat = next(iter(self._seats.values()))
            answer = seat.actor.fingerprint.remote(model)
            self._cluster.want(1)
            while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
                self._cluster.check(self._is_placed)
            try:
                found = ray.get(answer)
            except ray.exceptions.RayError as error:
                self._start_failed(seat, error)
            else:
                self._ever_ready = True
                return found

    def run(self, pool: Pool) -> Iterator[Event]:
        """Works until the pool is done; yields events as ``Executor.run``.

        Raises UserError if workers keep failing to start, NoRoom, and ClusterLost.
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
                elif isinstance(decision, ReplaceWorker):
                    self._close(decision.worker)
                elif isinstance(decision, GiveUp):
                    yield decision
                elif isinstance(decision, Stop):
                    yield decision
                    return
            yield from self._collect(pool)
            yield None

    @property
    def waits_for(self) -> str:
        """What there is to wait for before the first picture; empty once a worker is ready."""
        if self._cluster.is_waited_for or any(s.starting is None for s in self._seats.values()):
            return ""
        what = "starting" if self._first is None else f"loading {self._first.name} on"
        count = len(self._seats)
        return f"{what} {count} worker{'s' if count != 1 else ''}"

    def pids(self) -> list[int]:
        """The process ids of the workers that are ready."""
        return [seat.pid for seat in self._seats.values() if seat.starting is None]

    def nodes(self) -> list[str]:
        """Ray's ids of their nodes, in the same order."""
        return [seat.node for seat in self._seats.values() if seat.starting is None]

    @property
    def _is_placed(self) -> bool:
        """Whether a worker's process runs, or none is asked for at this moment."""
        if not self._seats or any(seat.starting is None for seat in self._seats.values()):
            return True
        return bool(ray.wait([seat.placed for seat in self._seats.values()], timeout=0)[0])

    def _open(self) -> None:
        options = self._options
        if full := self._cluster.full(seat.node for seat in self._seats.values()):
            options = options | {"label_selector": {"ray.io/node-id": f"!in({','.join(full)})"}}
        actor = self._kind.options(**options).remote(*self._arguments)
        placed = actor.__ray_ready__.remote()
        self._started += 1
        name = f"worker {self._started}"
        self._seats[name] = _Seat(name, actor, placed, actor.begin.remote(self._first))

    def _close(self, name: str) -> None:
        if seat := self._seats.pop(name, None):
            ray.kill(seat.actor)

    def _end_workers(self) -> None:
        """Kills them, and waits for those of this machine: they write no more then."""
        here = self._workers_here()
        for name in list(self._seats):
            self._close(name)
        orphan_reaper.end_processes(here, _ENDING_SECONDS)

    def _workers_here(self) -> list[psutil.Process]:
        node = ray.get_runtime_context().get_node_id()
        pids = [seat.pid for seat in self._seats.values() if seat.node == node]
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]

    def _adjust(self, pool: Pool) -> None:
        """Grows to what is useful and allowed; lets go of workers that have nothing left to do.

        Workers are opened as there is room for them, one in any case; the autoscaler is asked for
        the rest.
        """
        self._cluster.check(self._is_placed)
        wanted = workers_wanted(self._limits, pool.left)
        self._cluster.want(wanted)
        room = max(1, self._cluster.room)
        while len(self._seats) < min(wanted, room) and time.monotonic() >= self._open_again_at:
            self._open()
        self._on_workers_changed(min(len(self._seats), room))
        idle = [name for name, seat in self._seats.items() if not seat.streams]
        for name in idle[: max(0, len(self._seats) - max(wanted, self._limits.min))]:
            pool.left_by(name)
            self._close(name)

    def _send(self, decision: Send) -> None:
        seat, task = self._seats[decision.worker], decision.task
        stream = seat.actor.execute.options(num_returns="streaming").remote(task.order())
        seat.streams[stream] = task

    def _collect(self, pool: Pool) -> Iterator[Event]:
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
            seat.node, seat.pid = ray.get(seat.starting)
        except ray.exceptions.RayError as error:
            self._start_failed(seat, error)
        else:
            seat.starting = None
            self._failed_starts, self._open_again_at = 0, 0.0
            self._ever_ready = True
            pool.joined(seat.name)

    def _start_failed(self, seat: _Seat, error: ray.exceptions.RayError) -> None:
        """Raises UserError where the reason is the user's, or workers keep failing to start.

        Where a worker has been ready before, the reason is the machine's: another one may do, and
        while others work, the next one may wait.
        """
        if not self._cluster.answers():
            raise error  # ``__exit__`` raises the loss
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError) and not self._ever_ready:
            raise UserError(str(cause)) from None
        self._close(seat.name)
        is_memory = classify_error(error) == "memory"
        if is_memory and self._make_room(seat, error):
            return
        self._failed_starts += 1
        self._pause(self._failed_starts)
        lives = MEMORY_LIVES if is_memory and self._ever_ready else LIVES
        if self._failed_starts >= lives and not self.pids():
            what = f"workers: {self._failed_starts} in a row did not start: "
            if is_memory:
                raise NoRoom(what + memory_message(error)) from None
            raise UserError(what + why_not_started(cause or error)) from None

    def _pause(self, setbacks: int) -> None:
        """No worker is opened for a while, each time for twice as long."""
        self._open_again_at = time.monotonic() + min(2**setbacks, _LONGEST_PAUSE_SECONDS)

    def _make_room(self, killed: _Seat, error: Exception) -> bool:
        """Keeps fewer workers on the machine of one that was ended for want of memory.

        Returns False where no other worker can be there.
        """
        self._on_memory_kill()
        named = re.search(r"\bID: ([0-9a-f]{16,})", str(error))
        node = killed.node or (named[1] if named else None)
        others = 0
        if node is not None:
            others = sum(seat.node in ("", node) for seat in self._seats.values())
            self._cluster.limit(node, max(1, others))
        console.warning(
            f"{killed.name} was ended: {memory_message(error)}; {others or 'no'} others stay there",
            memory_kill=True,
        )
        return others > 0

    def _arrived(self, pool: Pool, seat: _Seat, stream: Any) -> Iterator[Any]:
        task = seat.streams[stream]
        try:
            piece = ray.get(next(stream))
        except StopIteration:
            del seat.streams[stream]
            pool.finished(seat.name, task)
        except ray.exceptions.RayError as error:
            if classify_error(error) != "task":
                self._died(pool, seat, error)
                return
            cause = getattr(error, "cause", None) or error
            del seat.streams[stream]
            if isinstance(cause, OutputLost):
                raise OutputLost(str(cause)) from None
            reason = "; ".join(filter(None, (reason_of(cause), for_workers(cause))))
            pool.failed(seat.name, task, reason, is_outage(cause), is_lasting(cause))
        else:
            if pool.delivered(seat.name, task, piece):
                yield piece

    def _died(self, pool: Pool, seat: _Seat, error: ray.exceptions.RayError) -> None:
        """A worker is gone, or cannot be reached.

        Raises the error if the cluster is gone too, and NoRoom if no machine has memory for one.
        """
        if not self._cluster.answers():
            raise error  # ``__exit__`` raises the loss
        self._close(seat.name)
        if classify_error(error) == "memory":
            pool.killed_for_memory(seat.name, crowded=self._make_room(seat, error))
            if kills := pool.memory_kills_in_a_row:
                self._pause(kills)
            if kills >= MEMORY_LIVES:
                raise NoRoom(f"workers: {kills} in a row were ended: {memory_message(error)}")
        else:
            pool.died(seat.name)
            console.warning(f"{seat.name} died; its work goes to others")


def classify_error(error: ray.exceptions.RayError) -> Literal["task", "memory", "worker"]:
    """What an exception of Ray's is to the pool.

    "task": a task raised it. "memory": Ray ended the worker because its machine's memory is full.
    "worker": all others; the worker is dead, or cannot be used any more.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        return "task"
    return "memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else "worker"


def memory_message(error: BaseException) -> str:
    """Why Ray ended a worker, in a line, and what can be done."""
    found = re.search(r"\bwas ([\d.]+ ?GB)(?: used)? / ([\d.]+ ?GB)", str(error))
    used = f" ({found[1]} of {found[2]} in use)" if found else ""
    return (
        f"its machine ran out of memory{used}. Fix: lower workers.max or sampling.batch_size, or "
        "use machines with more memory"
    )


def why_not_started(error: BaseException) -> str:
    """Why a worker did not start, in one line: its exception, or Ray's first sentence.

    Another version of this package on the cluster's machines is named as the cause.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    found = re.search(r"(?:Import|ModuleNotFound|Attribute)Error: [^:]*tgate_batch.*", text)
    if found is None:
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        detail = re.search(r"exit detail: (.*)", text)
        said = first_sentence(raised[-1] if raised else "\n".join(lines) or error)
        return f"{said} ({first_sentence(detail[1])})" if detail and not raised else said
    return (
        f"{found[0][:200]}; the cluster's machines have another tgate_batch than this one: install "
        "this one there, or bring it along with ray job submit --working-dir"
    )


def _leave(number: int) -> None:
    """Ends this worker's process, with the file that it was writing."""
    for file in psutil.Process().open_files():
        if is_temporary(file.path):
            Path(file.path).unlink(missing_ok=True)
    os._exit(128 + number)
