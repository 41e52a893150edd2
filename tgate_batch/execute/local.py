"""A run in this process, without Ray: for a debugger, a notebook, a first try."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from tgate_batch.config import Config, Model
from tgate_batch.errors import DeviceLost, UserError
from tgate_batch.execute.pool import Pool, Send, SetAside, Stop
from tgate_batch.execute.task import Task, reason_of
from tgate_batch.execute.worker import Worker
from tgate_batch.storage import Folder, is_outage

_NAME = "this process"
_POLL_SECONDS = 0.2


class LocalExecutor:
    """One worker in this process. A context manager, as every executor."""

    apart = False  # whether workers are other processes

    def __init__(
        self,
        config: Config,
        folder: Folder,
        first: Model | None = None,
        open_runner: Callable[[Model, Config], Any] | None = None,
        held: Callable[[int], None] = lambda workers: None,
        killed: Callable[[], None] = lambda: None,
    ):
        """Takes the same arguments as every executor; ``first`` is loaded when it is needed.

        ``held`` is told how many workers the executor holds; ``killed`` is never called.
        """
        self.waits_for = ""  # all is done before it yields
        self._worker = Worker(config, folder, open_runner)
        held(1)

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def fingerprint(self, model: Model) -> str | None:
        """Loads a model, and returns the fingerprint of its files. Raises UserError."""
        return self._worker.fingerprint(model)

    def run(self, pool: Pool) -> Iterator[Any]:
        """Works until the pool is done. Yields what workers deliver, tasks given up, and the
        decision to stop.

        Raises UserError as workers do, and where the device is lost: only another process could
        go on.
        """
        pool.in_flight, pool.patience = 1, None
        pool.joined(_NAME)
        while not pool.is_done:
            pool.tick(time.monotonic())
            decisions = pool.decide()
            for decision in decisions:
                if isinstance(decision, Send):
                    yield from self._carry_out(pool, decision.task)
                elif isinstance(decision, SetAside):
                    pool.joined(_NAME)  # there is no other worker to turn to
                else:
                    yield decision
                    if isinstance(decision, Stop):
                        return
            if not decisions:
                time.sleep(_POLL_SECONDS)  # the pool rests
                yield None

    def _carry_out(self, pool: Pool, task: Task) -> Iterator[Any]:
        try:
            for piece in getattr(self._worker, task.action)(task.order()):
                if pool.delivered(_NAME, task, piece):
                    yield piece
        except (UserError, DeviceLost) as error:
            raise UserError(" ".join(str(error).split())) from None
        except Exception as error:
            pool.tick(time.monotonic())
            pool.failed(_NAME, task, reason_of(error), is_outage(error))
        else:
            pool.finished(_NAME, task)
