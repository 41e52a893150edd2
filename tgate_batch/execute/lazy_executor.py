"""An executor that is opened when there is something for it to do."""

from collections.abc import Callable, Iterator
from typing import Any

from tgate_batch.execute.pool import Pool


class LazyExecutor:
    """Stands for an executor until one is needed. A context manager, as every executor."""

    def __init__(self, open_executor: Callable[[], Any]):
        self._open = open_executor
        self._executor: Any = None

    def __enter__(self) -> "LazyExecutor":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._executor is not None:
            self._executor.__exit__(*error)

    @property
    def is_open(self) -> bool:
        return self._executor is not None

    def run(self, pool: Pool) -> Iterator[Any]:
        """As every executor's."""
        yield from self._opened().run(pool)

    def _opened(self) -> Any:
        if self._executor is None:
            self._executor = self._open().__enter__()
        return self._executor
