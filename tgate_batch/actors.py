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
from tgate_batch.config import Config, Model, Workers
from tgate_batch.errors import UserError
from tgate_batch.prompts import ShardPlan
from tgate_batch.records import Prompt, Receipt, Shard
from tgate_batch.run import Missing, Run, missing
from tgate_batch.storage import Folder

_LIVES = 3  # deaths of its worker that a task survives unsplit
_IN_FLIGHT = 2  # tasks an actor holds, so that it never waits for the driver
_POLL_SECONDS = 1.0


def start() -> None:
    """Joins the cluster that is there (``RAY_ADDRESS``, a job), else starts a local one."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True)


def inside_job() -> bool:
    """Whether this process is the entry point of ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


class RenderWorker:
    """One process with one loaded model; renders the arms of shards and writes their files."""

    def __init__(self, config: Config, folder: Folder, metadata: dict[tuple[str, str], dict]):
        self._config = config
        self._folder = folder
        self._metadata = metadata
        self._device = threading.Lock()  # two tasks overlap, but only one computes
        self._loaded: tuple[str, Any] | None = None

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
                parquet.write_records(self._folder, name, records, shard.digest, metadata)
            good = [record for record in records if record.status == "ok"]
            yield Receipt(
                model.name,
                arm,
                shard.index,
                images=len(good),
                errors=len(records) - len(good),
                seconds=sum(record.batch_seconds / record.batch_size for record in good),
            )

    def _renderer(self, model: Model):
        import torch

        from tgate_batch.pipelines import Painter
        from tgate_batch.render import Renderer

        if self._loaded is None or self._loaded[0] != model.name:
            self._loaded = None  # frees the model before it
            on_gpu = self._config.workers.gpus_each > 0
            if not on_gpu:
                torch.set_num_threads(self._config.workers.cpus_each)
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
class _Worker:
    """An actor, and the tasks it holds, oldest first."""

    actor: Any
    starting: Any  # the reference that resolves when the actor stands
    tasks: deque[tuple[Any, _Task]] = field(default_factory=deque)


class Pool:
    """A pool of RenderWorkers between ``min`` and ``max``, as the cluster offers."""

    def __init__(self, run: Run, metadata: dict[tuple[str, str], dict]):
        start()
        self._workers_config: Workers = run.config.workers
        self._arguments = (run.config, run.folder, metadata)
        self._workers: list[_Worker] = []
        self._kind = ray.remote(RenderWorker).options(
            num_cpus=self._workers_config.cpus_each,
            num_gpus=self._workers_config.gpus_each,
            max_concurrency=_IN_FLIGHT,
            max_restarts=0,
        )
        self.deaths = 0
        _check_resources(self._workers_config)

    def render(self, work: Iterator[Missing], tasks: int) -> Iterator[Receipt | None]:
        """Yields receipts as files come to stand; None now and then while waiting.

        Raises UserError where a model cannot be loaded, RuntimeError where a shard fails three
        times for a reason that is not one of its prompts (a full disk, say).
        """
        waiting: deque[_Task] = deque()
        source = (_Task(missing) for missing in work)
        left = tasks
        try:
            while True:
                self._adjust(left)
                for worker in self._standing():
                    self._feed(worker, waiting, source)
                if left == 0:
                    return
                for receipt in self._collect(waiting):
                    if isinstance(receipt, Receipt):
                        yield receipt
                    else:
                        left -= 1
                yield None
        finally:
            for worker in self._workers:
                ray.kill(worker.actor)

    def _adjust(self, left: int) -> None:
        """Grows to what is useful and allowed; lets go of workers that have nothing left to do."""
        allowed = self._workers_config.max or max(
            self._workers_config.min, _room(self._workers_config)
        )
        wanted = min(allowed, left)
        while len(self._workers) < wanted:
            actor = self._kind.remote(*self._arguments)
            self._workers.append(_Worker(actor, actor.process.remote()))
        for worker in [w for w in self._workers if not w.tasks][: len(self._workers) - wanted]:
            ray.kill(worker.actor)
            self._workers.remove(worker)

    def _feed(self, worker: _Worker, waiting: deque[_Task], source: Iterator[_Task]) -> None:
        while len(worker.tasks) < _IN_FLIGHT and not any(task.alone for _, task in worker.tasks):
            if not waiting and (fresh := next(source, None)) is not None:
                waiting.append(fresh)
            if not waiting or (waiting[0].alone and worker.tasks):
                return
            task = waiting.popleft()
            worker.tasks.append((task.send(worker.actor), task))

    def _standing(self) -> list[_Worker]:
        starting = {w.starting: w for w in self._workers if w.starting is not None}
        if starting:
            ready, _ = ray.wait(list(starting), num_returns=len(starting), timeout=0)
            for reference in ready:
                starting[reference].starting = None
        return [w for w in self._workers if w.starting is None]

    def _collect(self, waiting: deque[_Task]) -> Iterator[Receipt | _Task]:
        """Whatever has arrived: receipts, and tasks that are finished."""
        streams = {stream: worker for worker in self._workers for stream, _ in worker.tasks}
        references = list(streams) + [w.starting for w in self._workers if w.starting is not None]
        if not references:
            time.sleep(_POLL_SECONDS)
            return
        ready, _ = ray.wait(references, num_returns=1, timeout=_POLL_SECONDS, fetch_local=False)
        for stream in ready:
            worker = streams.get(stream)
            if worker is None:
                continue
            task = next(task for held, task in worker.tasks if held is stream)
            try:
                receipt = ray.get(next(stream))
            except StopIteration:
                worker.tasks = deque(pair for pair in worker.tasks if pair[0] is not stream)
                if task.is_trial:
                    task.trial_survived()
                    waiting.appendleft(task)
                else:
                    yield task
            except ray.exceptions.RayActorError:
                self._bury(worker, waiting)
                return
            except ray.exceptions.RayTaskError as error:
                self._task_failed(error, worker, stream, task, waiting)
            else:
                if not task.is_trial:
                    task.arms_left.remove(receipt.arm)
                    yield receipt

    def _bury(self, worker: _Worker, waiting: deque[_Task]) -> None:
        """Puts a dead worker's tasks back. Two tasks blame neither: each runs alone from now on."""
        self.deaths += 1
        self._workers.remove(worker)
        tasks = [task for _, task in worker.tasks]
        if len(tasks) == 1:
            tasks[0].worker_died()
        for task in tasks:
            task.alone = True
        waiting.extendleft(reversed(tasks))

    def _task_failed(
        self, error: Exception, worker: _Worker, stream: Any, task: _Task, waiting: deque[_Task]
    ) -> None:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        task.errors += 1
        if task.errors >= _LIVES:
            shard = task.work.shard.name
            raise RuntimeError(f"{shard} failed {_LIVES} times; the last time with: {cause!r}")
        worker.tasks = deque(pair for pair in worker.tasks if pair[0] is not stream)
        waiting.appendleft(task)


class MeasureWorker:
    """One process with one extractor; measures finished shards and writes their numbers."""

    def __init__(self, run: Run):
        import torch

        self._run = run
        if not run.config.workers.gpus_each:
            torch.set_num_threads(run.config.workers.cpus_each)
        self._asked = None

    def measure(self, model: str, arm: str, shard: ShardPlan) -> str | None:
        """Measures one shard unless that was done before; returns why it could not."""
        from tgate_batch import score

        self._asked = self._asked or score.asked(self._run)
        return score.measure_shard(self._run, self._asked, model, arm, shard)


def measure_all(run: Run) -> Iterator[str | None]:
    """Measures every rendered shard; yields, a shard, None or why it could not be measured.

    Raises UserError where the extractor cannot be loaded.
    """
    start()
    jobs = [
        (model.name, arm, shard)
        for model, arm, _ in run.pairs()
        for shard in run.shards
        if run.is_done(model.name, arm, shard)
    ]
    workers = run.config.workers
    count = max(1, min(len(jobs), workers.max or _room(workers), _room(workers)))
    kind = ray.remote(MeasureWorker).options(
        num_cpus=workers.cpus_each, num_gpus=workers.gpus_each, max_restarts=_LIVES
    )
    actors = [kind.remote(run) for _ in range(count)]
    try:
        pool = ray.util.ActorPool(actors)
        yield from pool.map_unordered(lambda actor, job: actor.measure.remote(*job), jobs)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    finally:
        for actor in actors:
            ray.kill(actor)


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


def render_missing(run: Run, metadata: dict[tuple[str, str], dict]) -> Iterator[Receipt | None]:
    """Renders what ``run`` lacks; yields what :meth:`Pool.render` yields."""
    tasks = sum(
        any(not run.is_done(model.name, arm, shard) for arm in run.config.arms)
        for model in run.config.models
        for shard in run.shards
    )
    return Pool(run, metadata).render(missing(run), tasks)
