"""Counts the MACs of a run's images, once for all workers, in a thread of the driver."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from tgate_batch.config import Model, effective_sampling
from tgate_batch.output.run import Pending, Run
from tgate_batch.records import BatchKey

_Count = Future[Mapping[str, int] | None]


class MacsCounter:
    """Counts each (model, arm, batch key) once. A context manager, which ends its thread.

    A count takes seconds for each new size of a large model, and no device: a worker that counted
    would leave its device idle.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "macs")
        self._counts: dict[tuple[str, str, BatchKey], _Count] = {}

    def __enter__(self) -> "MacsCounter":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def of(self, model: Model, arm: str, batch_key: BatchKey) -> Mapping[str, int] | None:
        """Waits for a count and returns it, by column; None if it is not possible here."""
        return self._start(model, arm, batch_key).result()

    def start(self, pending: Pending) -> None:
        """Starts to count all that is pending, in its order."""
        for model in self._run.config.models:
            for shard in self._run.shards:
                for arm in pending[model.name].get(shard.index, ()):
                    self._start(model, arm, shard.batch_key)

    def _start(self, model: Model, arm: str, batch_key: BatchKey) -> _Count:
        key = model.name, arm, batch_key
        if key not in self._counts:
            self._counts[key] = self._thread.submit(self._count, model, arm, batch_key)
        return self._counts[key]

    def _count(self, model: Model, arm: str, batch_key: BatchKey) -> Mapping[str, int] | None:
        try:
            from tgate_batch.models.macs.arm import macs_of_arm

            sampling = effective_sampling(self._run.sampling(model.name), row=batch_key)
            return macs_of_arm(model, self._run.config.arms[arm], sampling).columns()
        except Exception:  # no model files here yet, or a plugin's error, which a worker reports
            return None
