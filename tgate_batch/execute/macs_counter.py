"""MACs of a run's pictures: counted once for all workers, beside them."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from tgate_batch.config import Model, effective_sampling
from tgate_batch.output.run import Pending, Run
from tgate_batch.records import BatchKey

_Key = tuple[str, str, BatchKey]  # model, arm, kind of rows


class MacsCounter:
    """Counts each (model, arm, kind of rows) once. A context manager, for its thread's sake.

    A count takes seconds for each new size of a large model, and no device: a worker that counted
    would leave its own idle.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "macs")
        self._known: dict[_Key, Future[Mapping[str, int] | None]] = {}

    def __enter__(self) -> "MacsCounter":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def of(self, model: Model, arm: str, kind: BatchKey) -> Mapping[str, int] | None:
        """As the output's files carry them; waits for them. None: they cannot be counted here."""
        return self._begun(model, arm, kind).result()

    def ahead(self, pending: Pending) -> None:
        """Begins to count all that is pending, in its order."""
        for model, arm, kind in self._wanted(pending):
            self._begun(model, arm, kind)

    def _wanted(self, pending: Pending) -> Iterable[tuple[Model, str, BatchKey]]:
        for model in self._run.config.models:
            missing = pending[model.name]
            found = {
                (arm, shard.batch_key): None
                for shard in self._run.shards
                for arm in missing.get(shard.index, ())
            }
            yield from ((model, *key) for key in found)

    def _begun(self, model: Model, arm: str, kind: BatchKey) -> Future[Mapping[str, int] | None]:
        key = model.name, arm, kind
        if key not in self._known:
            self._known[key] = self._thread.submit(self._counted, model, arm, kind)
        return self._known[key]

    def _counted(self, model: Model, arm: str, kind: BatchKey) -> Mapping[str, int] | None:
        try:
            from tgate_batch.models.macs.arm import macs_of_arm

            sampling = effective_sampling(self._run.sampling(model.name), row=kind)
            return macs_of_arm(model, self._run.config.arms[arm], sampling).columns()
        except Exception:  # its files are not here yet, or a plugin's fault: a worker says it
            return None
