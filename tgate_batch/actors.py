"""Many shards at once, under Ray. The only module that imports ray.

Actors, placement and the detection of dead workers are Ray's own. This module feeds tasks to a
pool of actors and decides what a failure means: a worker that dies costs its task one life; after
three, the shard is split to find the prompt it dies on, and that prompt becomes an error row.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.util

from tgate_batch import models, parquet
from tgate_batch.config import Model, Workers
from tgate_batch.errors import UserError
from tgate_batch.prompts import ShardPlan
from tgate_batch.records import Prompt, Receipt, Shard
from tgate_batch.run import Missing, Run, missing

_LIVES = 3  # deaths of its worker that a task survives unsplit
_IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
_POLL_SECONDS = 1.0


def start() -> None:
    """Joins the cluster that is there (``RAY_ADDRESS``, a job), else starts a local one."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)


def inside_job() -> bool:
    """Whether this process is the entry point of ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


class Worker:
    """One process with one model or extractor; renders and measures shards, writes their files."""

    def __init__(self, run: Run, metadata: dict[tuple[str, str], dict]):
        self._run = run
        self._config = run.config
        self._metadata = metadata
        self._device = threading.Lock()  # two tasks overlap, but only one computes
        self._loaded: tuple[str, Any] | None = None
        self._asked: Any = None

    def process(self) -> int:
        """Answers when the worker stands: its process id."""
        return os.getpid()

    def render(
        self,
        model: Model,
        shard: Shard,
        arms: tuple[str, ...],
        quarantined: dict[str, str],
        keep: bool,
    ) -> Iterator[Receipt]:
        """Yields a receipt an arm, after its file stands; ``keep`` False: a trial, no file."""
        from tgate_batch.render import DeviceLost

        for arm in arms:
            try:
                with self._device:
                    renderer = self._renderer(model)
                    rows = list(renderer.render(shard, arm, self._config.arms[arm], quarantined))
            except DeviceLost:
                os._exit(1)  # a fresh process takes the shard
            records = [row() for row in rows]
            if keep:
                name = parquet.images_name(model.name, arm, shard.index)
                metadata = self._metadata[model.name, arm] | {"device": _device_name()}
                parquet.write_records(self._run.folder, name, records, shard.digest, metadata)
            good = [record for record in records if record.status == "ok"]
            yield Receipt(
                model.name,
                arm,
                shard.index,
                images=len(good),
                errors=len(records) - len(good),
                seconds=sum(record.batch_seconds / record.batch_size for record in good),
            )

    def measure(self, model: str, arm: str, shard: ShardPlan) -> str | None:
        """Measures one shard unless that was done before; returns why it could not."""
        from tgate_batch import score

        with self._device:
            if self._asked is None:
                self._loaded = None  # makes room for the extractor
                self._limit_threads()
                self._asked = score.asked(self._run)
            return score.measure_shard(self._run, self._asked, model, arm, shard)

    def _limit_threads(self) -> None:
        import torch

        if not self._config.workers.gpus_each:
            torch.set_num_threads(self._config.workers.cpus_each)

    def _renderer(self, model: Model):
        from tgate_batch.pipelines import Painter
        from tgate_batch.render import Renderer

        if self._loaded is None or self._loaded[0] != model.name:
            self._loaded = None  # frees the model before it
            self._limit_threads()
            on_gpu = self._config.workers.gpus_each > 0
            sampling = models.resolve(model.name, self._config.sampling)
            device = "cuda" if on_gpu else "cpu"
            pipeline = models.load(model, sampling, device, model.dtype)
            painter = Painter(pipeline, models.entry(model.name), sampling)
            worker = f"{socket.gethostname()}-{os.getpid()}"
            self._loaded = (model.name, Renderer(painter, self._config.images, worker))
        return self._loaded[1]


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


@dataclass
class _Task:
    """One (model, shard) on its way, with what is known of its prompts."""

    work: Missing
    deaths: int = 0
    errors: int = 0
    splits: int = 0
    alone: bool = False  # under suspicion: shares its worker with no other task
    quarantined: dict[str, str] = field(default_factory=dict)
    suspects: list[tuple[Prompt, ...]] = field(default_factory=list)
    arms_left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arms_left = list(self.work.arms)

    @property
    def is_trial(self) -> bool:
        return bool(self.suspects)

    def send(self, actor: Any) -> Any:
        shard = self.work.shard
        if self.is_trial:
            shard = Shard(shard.index, self.suspects[-1])
        return actor.render.options(num_returns="streaming").remote(
            self.work.model, shard, tuple(self.arms_left), self.quarantined, not self.is_trial
        )

    def worker_died(self) -> None:
        self.deaths += 1
        if self.is_trial:
            self._accuse(self.suspects.pop())
        elif self.deaths >= _LIVES:
            self.splits += 1
            left = tuple(p for p in self.work.shard.prompts if p.id not in self.quarantined)
            if self.splits == 1:
                self._accuse(left)
            else:  # no single prompt was to blame, and it dies all the same
                for prompt in left:
                    self._quarantine(prompt)
            self.deaths = 0

    def trial_survived(self) -> None:
        self.suspects.pop()

    def _accuse(self, prompts: tuple[Prompt, ...]) -> None:
        if len(prompts) == 1:
            self._quarantine(prompts[0])
        elif prompts:
            half = len(prompts) // 2
            self.suspects += [prompts[half:], prompts[:half]]

    def _quarantine(self, prompt: Prompt) -> None:
        self.quarantined[prompt.id] = "the worker's process died each time on this prompt"


@dataclass
class _Seat:
    """An actor, and the tasks it holds, oldest first."""

    actor: Any
    starting: Any  # the reference that resolves when the actor stands
    tasks: deque[tuple[Any, _Task]] = field(default_factory=deque)


class Pool:
    """A pool of workers between ``min`` and ``max``, as the cluster offers. A context manager."""

    def __init__(self, run: Run, metadata: dict[tuple[str, str], dict]):
        """``metadata``: what the files of each (model, arm) carry. Raises UserError where no
        worker could ever start."""
        start()
        self._run = run
        self._limits: Workers = run.config.workers
        self._arguments = (run, metadata)
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
        waiting: deque[_Task] = deque()
        source = (_Task(work) for work in missing(self._run))
        left = sum(
            any(not self._run.is_done(model.name, arm, shard) for arm in self._run.config.arms)
            for model in self._run.config.models
            for shard in self._run.shards
        )
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

        Raises UserError where the extractor cannot be loaded.
        """
        jobs = [
            (model.name, arm, shard)
            for model, arm, _ in self._run.pairs()
            for shard in self._run.shards
            if self._run.is_done(model.name, arm, shard)
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
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        except ray.exceptions.RayActorError:
            raise UserError(
                "a worker died while measuring; what it had measured is kept: run jobs/score.py"
            ) from None

    def _adjust(self, left: int) -> None:
        """Grows to what is useful and allowed; lets go of workers that have nothing left to do."""
        least = self._limits.min
        wanted = min(self._limits.max or max(least, _room(self._limits)), left)
        while len(self._seats) < wanted:
            actor = self._kind.remote(*self._arguments)
            self._seats.append(_Seat(actor, actor.process.remote()))
        idle = [seat for seat in self._seats if not seat.tasks]
        for seat in idle[: max(0, len(self._seats) - max(wanted, least))]:
            ray.kill(seat.actor)
            self._seats.remove(seat)

    def _feed(self, seat: _Seat, waiting: deque[_Task], source: Iterator[_Task]) -> None:
        """Sends one more task, unless one under suspicion would have to share the worker."""
        if any(task.alone for _, task in seat.tasks):
            return
        if not waiting and (fresh := next(source, None)) is not None:
            waiting.append(fresh)
        if waiting and not (waiting[0].alone and seat.tasks):
            task = waiting.popleft()
            seat.tasks.append((task.send(seat.actor), task))

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
            self._seats.remove(seat)
            self._failed_starts += 1
            if self._failed_starts >= _LIVES:
                reason = " ".join(str(error).split())[-300:]
                raise UserError(f"workers: {_LIVES} in a row did not start: {reason}") from None
        else:
            seat.starting = None
            self._failed_starts = 0

    def _collect(self, waiting: deque[_Task]) -> Iterator[Receipt | _Task]:
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

    def _bury(self, seat: _Seat, waiting: deque[_Task]) -> None:
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
        self, error: Exception, seat: _Seat, stream: Any, task: _Task, waiting: deque[_Task]
    ) -> None:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        task.errors += 1
        if task.errors >= _LIVES:
            shard = task.work.shard.name
            raise RuntimeError(f"{shard} failed {_LIVES} times; the last time with: {cause!r}")
        seat.tasks = deque(pair for pair in seat.tasks if pair[0] is not stream)
        waiting.appendleft(task)


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
