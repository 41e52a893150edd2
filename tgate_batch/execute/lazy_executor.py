"""An executor that opens another one at the first use."""

from collections.abc import Callable, Iterator

from tgate_batch.config import Model
from tgate_batch.execute.executor import Event, Executor
from tgate_batch.execute.pool import Pool


class LazyExecutor:
    """Opens its executor at the first use, and closes it if it was opened."""

    waits_for = ""

    def __init__(self, open_executor: Callable[[], Executor]):
        self._open = open_executor
        self._executor: Executor | None = None

    def __enter__(self) -> "LazyExecutor":
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.__exit__(*error)

    @property
    def is_open(self) -> bool:
        return self._executor is not None

    @property
    def apart(self) -> bool:
        return self._opened.apart

    def fingerprint(self, model: Model) -> str | None:
        return self._opened.fingerprint(model)

    def run(self, pool: Pool) -> Iterator[Event]:
        yield from self._opened.run(pool)

    @property
    def _opened(self) -> Executor:
        if self._executor is None:
            self._executor = self._open().__enter__()
        return self._executor
