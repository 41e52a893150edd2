"""The executor in this process, without Ray: for debugging, notebooks and small runs."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from tgate_batch.config import Config, Model
from tgate_batch.errors import DeviceLost, OutputLost, UserError, message_of
from tgate_batch.execute.executor import Event
from tgate_batch.execute.pool import Pool, ReplaceWorker, Send, Stop
from tgate_batch.execute.task import Task, reason_of
from tgate_batch.execute.worker import Worker
from tgate_batch.storage import Folder, is_lasting, is_outage

_NAME = "this process"
_POLL_SECONDS = 0.2


class LocalExecutor:
    """One worker in this process."""

    apart = False
    is_open = True
    waits_for = ""  # the worker is ready when it yields

    def __init__(
        self,
        config: Config,
        folder: Folder,
        first: Model | None = None,
        open_runner: Callable[[Model, Config], Any] | None = None,
        on_workers_changed: Callable[[int], None] = lambda workers: None,
        on_memory_kill: Callable[[], None] = lambda: None,
    ):
        """Takes the arguments of every executor; ``first`` is loaded when it is needed.

        ``on_workers_changed`` is called with the number of workers; ``on_memory_kill`` never.
        """
        self._worker = Worker(config, folder, open_runner)
        on_workers_changed(1)

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def fingerprint(self, model: Model) -> str | None:
        """Loads a model and returns the fingerprint of its files; raises UserError."""
        return self._worker.fingerprint(model)

    def run(self, pool: Pool) -> Iterator[Event]:
        """Works until the pool is done; yields events as ``Executor.run``.

        Raises OutputLost and UserError as workers do, and UserError if the device is lost, because
        only a new process could continue.
        """
        pool.in_flight, pool.patience = 1, None
        pool.joined(_NAME)
        while not pool.is_done:
            pool.tick(time.monotonic())
            decisions = pool.decide()
            for decision in decisions:
                if isinstance(decision, Send):
                    yield from self._carry_out(pool, decision.task)
                elif isinstance(decision, ReplaceWorker):
                    pool.joined(_NAME)  # there is no other worker
                else:
                    yield decision
                    if isinstance(decision, Stop):
                        return
            if not decisions:
                time.sleep(_POLL_SECONDS)  # the pool pauses
                yield None

    def _carry_out(self, pool: Pool, task: Task) -> Iterator[Event]:
        try:
            for result in self._worker.execute(task.order()):
                if pool.delivered(_NAME, task, result):
                    yield result
        except (UserError, DeviceLost) as error:
            raise UserError(message_of(error)) from None
        except OutputLost:
            raise
        except Exception as error:
            pool.tick(time.monotonic())
            pool.failed(_NAME, task, reason_of(error), is_outage(error), is_lasting(error))
        else:
            pool.finished(_NAME, task)
