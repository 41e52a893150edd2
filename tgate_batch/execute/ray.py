"""The executor with many workers, under Ray.

Ray provides actors, placement and the detection of dead workers. The pool decides what a failure
means; this module reports events to it and carries out its decisions.
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
from tgate_batch.execute.pool import Pool, ReplaceWorker, Send, Stop, workers_wanted
from tgate_batch.execute.task import LIVES, MEMORY_LIVES, RenderOrder, Task, reason_of
from tgate_batch.execute.worker import Worker
from tgate_batch.output import shutdown
from tgate_batch.records import ShardProgress, ShardResult
from tgate_batch.storage import Folder, is_lasting, is_outage, is_temporary, worker_hint

_IN_FLIGHT = 2  # tasks of an actor, so that it never waits for the driver
_POLL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60  # after a failed start
_ENDING_SECONDS = 2.0  # in which killed processes end


class _RayWorker(Worker):
    """A worker in an actor. If its device is lost, the process ends, and Ray starts a new actor.

    On SIGTERM the process exits at once, and other workers get its tasks.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        shutdown.watch([signal.SIGTERM], _exit)

    def begin(self, model: Model | None) -> tuple[str, int]:
        """Loads the model, if one is given. Returns Ray's id of the node, and the process id.

        Raises UserError if the model cannot be loaded.
        """
        return ray.get_runtime_context().get_node_id(), self.load(model)

    def render(self, order: RenderOrder) -> Iterator[ShardProgress | ShardResult]:
        try:
            yield from super().render(order)
        except DeviceLost:
            os._exit(1)


@dataclass
class _Actor:
    """An actor, and the streams of its tasks."""

    name: str
    handle: Any
    placed: Any  # the reference that resolves once the actor's process runs
    starting: Any  # the reference that resolves once the actor is ready; None afterwards
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
        self._owns_ray = start()
        self._cluster = Cluster(config.workers)
        self._limits = config.workers
        self._first = first
        self._on_workers_changed = on_workers_changed
        self._on_memory_kill = on_memory_kill
        self._arguments = (config, folder, open_runner)
        self._actors: dict[str, _Actor] = {}
        self._actors_started = 0
        self._failed_starts = 0
        self._next_start_at = 0.0
        self._ever_ready = False
        self._actor_class: Any = ray.remote(_RayWorker)
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
        """Ends the workers. Raises ClusterLost if the error is due to a lost cluster."""
        if lost := self._cluster.lost_by(error):
            orphan_reaper.end_processes(self._workers_here(), 0)
            stop(at_once=True)
            raise lost from None
        here = self._workers_here()
        for name in list(self._actors):
            self._close(name)
        orphan_reaper.end_processes(here, _ENDING_SECONDS)  # they write nothing from now on
        self._cluster.close()
        if self._owns_ray:
            stop(at_once=shutdown.is_shutting_down())

    def fingerprint(self, model: Model) -> str | None:
        """Loads a model in one worker and returns the fingerprint of its files.

        Raises UserError if it cannot be loaded, and ClusterLost.
        """
        while True:
            if not self._actors:
                time.sleep(max(0.0, self._next_start_at - time.monotonic()))
                self._open()
            actor = next(iter(self._actors.values()))
            answer = actor.handle.fingerprint.remote(model)
            self._cluster.want(1)
            while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
                self._cluster.check(self._is_placed)
            try:
                fingerprint = ray.get(answer)
            except ray.exceptions.RayError as error:
                self._start_failed(actor, error)
            else:
                self._ever_ready = True
                return fingerprint

    def run(self, pool: Pool) -> Iterator[Event]:
        """Works until the pool is done; yields events as ``Executor.run``.

        Raises UserError if workers keep failing to start, NoRoom, and ClusterLost.
        """
        pool.in_flight, pool.patience = _IN_FLIGHT, self._limits.hang_after
        pool.tick(time.monotonic())
        for actor in self._actors.values():
            if actor.starting is None:
                pool.joined(actor.name)
        while not pool.is_done:
            self._adjust(pool)
            pool.tick(time.monotonic())
            for decision in pool.decide():
                if isinstance(decision, Send):
                    actor = self._actors[decision.worker]
                    execute = actor.handle.execute.options(num_returns="streaming")
                    actor.streams[execute.remote(decision.task.order())] = decision.task
                elif isinstance(decision, ReplaceWorker):
                    self._close(decision.worker)
                else:
                    yield decision
                    if isinstance(decision, Stop):
                        return
            yield from self._collect(pool)
            yield None

    @property
    def waits_for(self) -> str:
        """What the first result is waiting for; empty once a worker is ready."""
        if self._cluster.is_waited_for or any(s.starting is None for s in self._actors.values()):
            return ""
        what = "starting" if self._first is None else f"loading {self._first.name} on"
        count = len(self._actors)
        return f"{what} {count} worker{'s' if count != 1 else ''}"

    def pids(self) -> list[int]:
        """Returns the process ids of the workers that are ready."""
        return [actor.pid for actor in self._actors.values() if actor.starting is None]

    def nodes(self) -> list[str]:
        """Returns Ray's ids of their nodes, in the same order."""
        return [actor.node for actor in self._actors.values() if actor.starting is None]

    @property
    def _is_placed(self) -> bool:
        """True if a worker's process runs, or no worker was asked for."""
        if not self._actors or any(actor.starting is None for actor in self._actors.values()):
            return True
        return bool(ray.wait([actor.placed for actor in self._actors.values()], timeout=0)[0])

    def _open(self) -> None:
        options = self._options
        if full := self._cluster.full(actor.node for actor in self._actors.values()):
            options = options | {"label_selector": {"ray.io/node-id": f"!in({','.join(full)})"}}
        handle = self._actor_class.options(**options).remote(*self._arguments)
        placed = handle.__ray_ready__.remote()
        self._actors_started += 1
        name = f"worker {self._actors_started}"
        self._actors[name] = _Actor(name, handle, placed, handle.begin.remote(self._first))

    def _close(self, name: str) -> None:
        if actor := self._actors.pop(name, None):
            ray.kill(actor.handle)

    def _workers_here(self) -> list[psutil.Process]:
        node = ray.get_runtime_context().get_node_id()
        pids = [actor.pid for actor in self._actors.values() if actor.node == node]
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]

    def _adjust(self, pool: Pool) -> None:
        """Starts useful workers as the cluster has room, at least one; ends those that are idle.

        The autoscaler is asked for the others.
        """
        self._cluster.check(self._is_placed)
        wanted = workers_wanted(self._limits, pool.left)
        self._cluster.want(wanted)
        room = max(1, self._cluster.room)
        while len(self._actors) < min(wanted, room) and time.monotonic() >= self._next_start_at:
            self._open()
        self._on_workers_changed(min(len(self._actors), room))
        idle = [name for name, actor in self._actors.items() if not actor.streams]
        for name in idle[: max(0, len(self._actors) - max(wanted, self._limits.min))]:
            pool.left_by(name)
            self._close(name)

    def _collect(self, pool: Pool) -> Iterator[Event]:
        """Waits briefly for results and reports them to the pool; yields those that count."""
        streams = {stream: actor for actor in self._actors.values() for stream in actor.streams}
        starting = {
            actor.starting: actor for actor in self._actors.values() if actor.starting is not None
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
                yield from self._take_result(pool, streams[reference], reference)

    def _joined(self, pool: Pool, actor: _Actor) -> None:
        try:
            actor.node, actor.pid = ray.get(actor.starting)
        except ray.exceptions.RayError as error:
            self._start_failed(actor, error)
        else:
            actor.starting = None
            self._failed_starts, self._next_start_at = 0, 0.0
            self._ever_ready = True
            pool.joined(actor.name)

    def _start_failed(self, actor: _Actor, error: ray.exceptions.RayError) -> None:
        """Raises UserError if the reason is the user's, or workers keep failing to start.

        If a worker was ready before, the reason is the machine's: other machines may do, and while
        other workers are ready, the next start can wait.
        """
        if not self._cluster.answers():
            raise error  # ``__exit__`` raises the loss
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError) and not self._ever_ready:
            raise UserError(str(cause)) from None
        self._close(actor.name)
        is_memory = classify_error(error) == "memory"
        if is_memory and self._make_room(actor, error):
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
        """Delays the next start, each time for twice as long."""
        self._next_start_at = time.monotonic() + min(2**setbacks, _LONGEST_PAUSE_SECONDS)

    def _make_room(self, killed: _Actor, error: Exception) -> bool:
        """Limits the workers on the machine of one that was killed for its memory.

        Returns False if no other worker is there.
        """
        self._on_memory_kill()
        match = re.search(r"\bID: ([0-9a-f]{16,})", str(error))
        node = killed.node or (match[1] if match else None)
        others = 0
        if node is not None:
            others = sum(actor.node in ("", node) for actor in self._actors.values())
            self._cluster.limit(node, max(1, others))
        console.warning(
            f"{killed.name} was killed: {memory_message(error)}; {others or 'no'} others run there",
            memory_kill=True,
        )
        return others > 0

    def _take_result(self, pool: Pool, actor: _Actor, stream: Any) -> Iterator[Any]:
        task = actor.streams[stream]
        try:
            result = ray.get(next(stream))
        except StopIteration:
            del actor.streams[stream]
            pool.finished(actor.name, task)
        except ray.exceptions.RayError as error:
            if classify_error(error) != "task":
                self._died(pool, actor, error)
                return
            cause = getattr(error, "cause", None) or error
            del actor.streams[stream]
            if isinstance(cause, OutputLost):
                raise OutputLost(str(cause)) from None
            reason = "; ".join(filter(None, (reason_of(cause), worker_hint(cause))))
            pool.failed(actor.name, task, reason, is_outage(cause), is_lasting(cause))
        else:
            if pool.delivered(actor.name, task, result):
                yield result

    def _died(self, pool: Pool, actor: _Actor, error: ray.exceptions.RayError) -> None:
        """Handles a worker that is dead or cannot be reached.

        Raises the error if the cluster is lost too, and NoRoom if no machine has memory for one.
        """
        if not self._cluster.answers():
            raise error  # ``__exit__`` raises the loss
        self._close(actor.name)
        if classify_error(error) == "memory":
            pool.killed_for_memory(actor.name, crowded=self._make_room(actor, error))
            if kills := pool.memory_kills_in_a_row:
                self._pause(kills)
            if kills >= MEMORY_LIVES:
                raise NoRoom(f"workers: {kills} in a row were killed: {memory_message(error)}")
        else:
            pool.died(actor.name)
            console.warning(f"{actor.name} died; other workers get its tasks")


def classify_error(error: ray.exceptions.RayError) -> Literal["task", "memory", "worker"]:
    """Classifies an exception of Ray's.

    "task": a task raised it. "memory": Ray killed the worker because its machine's memory is full.
    "worker": any other; the worker is dead or unusable.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        return "task"
    return "memory" if isinstance(error, ray.exceptions.OutOfMemoryError) else "worker"


def memory_message(error: BaseException) -> str:
    """Returns why Ray killed a worker, and how to avoid it."""
    match = re.search(r"\bwas ([\d.]+ ?GB)(?: used)? / ([\d.]+ ?GB)", str(error))
    used = f" ({match[1]} of {match[2]} in use)" if match else ""
    return (
        f"its machine ran out of memory{used}. Fix: lower workers.max or sampling.batch_size, or "
        "use machines with more memory"
    )


def why_not_started(error: BaseException) -> str:
    """Returns why a worker did not start, in one line: its exception, or Ray's first sentence.

    If the cluster's machines have another version of this package, that is named as the cause.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    match = re.search(r"(?:Import|ModuleNotFound|Attribute)Error: [^:]*tgate_batch.*", text)
    if match is not None:
        return (
            f"{match[0][:200]}; the cluster's machines have another version of tgate_batch. Fix: "
            "install this one there, or submit it with ray job submit --working-dir"
        )
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    if raised:
        return first_sentence(raised[-1])
    sentence = first_sentence("\n".join(lines) or error)
    detail = re.search(r"exit detail: (.*)", text)
    return f"{sentence} ({first_sentence(detail[1])})" if detail else sentence


def _exit(number: int) -> None:
    """Ends this worker's process and deletes the file that it was writing."""
    for file in psutil.Process().open_files():
        if is_temporary(file.path):
            Path(file.path).unlink(missing_ok=True)
    os._exit(128 + number)
