"""The contract of an executor, which runs a pool of tasks on workers, here or under Ray."""

from collections.abc import Iterator
from typing import Protocol, Self

from tgate_batch.config import Model
from tgate_batch.execute.pool import GiveUp, Pool, Stop
from tgate_batch.execute.task import Result

Event = Result | GiveUp | Stop | None


class Executor(Protocol):
    """Workers that carry out tasks. A context manager: its workers end with the block."""

    @property
    def apart(self) -> bool:
        """True if the workers are other processes than this one."""

    @property
    def is_open(self) -> bool:
        """True if workers are there, or starting."""

    @property
    def waits_for(self) -> str:
        """What the first result is waiting for; empty once a worker is ready."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def fingerprint(self, model: Model) -> str | None:
        """Loads a model in one worker and returns the fingerprint of its files.

        Raises UserError if the model cannot be loaded.
        """

    def run(self, pool: Pool) -> Iterator[Event]:
        """Works until the pool is done.

        Yields the workers' results, each task that is given up, the decision to stop (the last
        event), and None from time to time while nothing arrives. Raises UserError if no worker can
        start, and OutputLost if another run has taken over the output.
        """
