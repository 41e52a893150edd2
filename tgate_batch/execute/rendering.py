"""Renders what is pending on an executor's workers, and stops a run that fails too often."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from tgate_batch.errors import UserError
from tgate_batch.execute.executor import Executor
from tgate_batch.execute.macs_counter import MacsCounter
from tgate_batch.execute.pool import GiveUp, Pool, Stop
from tgate_batch.execute.progress import RunProgress
from tgate_batch.execute.task import RenderTask
from tgate_batch.output import layout
from tgate_batch.output.error_rows import allowed
from tgate_batch.output.run import Pending, Prepared, Run, damaged_files, note_damaged
from tgate_batch.records import ShardProgress, ShardResult

_NOT_INVARIANT = (
    "equal rows of a batch give unequal images on some worker, so an image's last bits depend on "
    "its position. Fix: on a CPU, set workers.cpus_each to 1"
)
_IDS_NAMED = 3  # of truncated prompts
_VISIBLE_WITHIN = 10.0  # seconds after which a file of another machine must be visible

OnlyErrors = Mapping[tuple[str, int], frozenset[str]]  # (model, shard) -> arms
MacsOf = Callable[..., Mapping[str, int] | None]  # of (model, arm, batch key)


class RenderOutcome(NamedTuple):
    """The devices that rendered, and the problems that concern more than one image, a line each.

    ``stopped``: why the run ended early. ``invariant``: True if an image's bits never depend on its
    position in the batch, on any device; None if that is not known.
    """

    devices: str
    problems: tuple[str, ...] = ()
    stopped: str | None = None
    invariant: bool | None = None


def _by_workers(*_: Any) -> None:
    """Lets each worker count MACs, because torch is loaded there already."""


def render_pool(
    run: Run, pending: Pending, retries: OnlyErrors | None = None, macs: MacsOf = _by_workers
) -> Pool:
    """Returns a pool of all that is pending; of ``retries``, only error rows are rendered.

    ``macs``: returns the MACs of an image, or None if workers count them.
    """
    count = sum(len(arms) for shards in pending.values() for arms in shards.values())
    return Pool(_groups(run, pending, retries or {}, macs), count)


def _groups(
    run: Run, pending: Pending, retries: OnlyErrors, macs: MacsOf
) -> Iterator[list[RenderTask]]:
    for model in run.config.models:
        for shard in run.shards:
            if arms := pending[model.name].get(shard.index):
                quarantined: dict[int, str] = {}
                yield [
                    RenderTask(
                        model,
                        shard,
                        arm,
                        run.pictures(model.name, arm, shard)[1],
                        quarantined,
                        arm in retries.get((model.name, shard.index), ()),
                        partial(macs, model, arm, shard.batch_key),
                        run.promised_checkpoint(model.name, arm),
                    )
                    for arm in arms
                ]


def render_pending(
    run: Prepared, pending: Pending, executor: Executor, retries: OnlyErrors | None = None
) -> RenderOutcome:
    """Renders what is pending, until it is done or too many images fail (``max_errors``).

    Raises UserError if a worker's files do not appear in the output.
    """
    damaged = damaged_files(run.folder)
    devices: set[str] = set()
    hosts: set[str] = set()
    problems: dict[str, None] = {}
    failures = _Failures(run, pending)
    truncated: dict[tuple[str, str], dict[str, None]] = {}  # by model and field of Cut
    stopped: str | None = None
    invariant: set[bool | None] = set()
    with MacsCounter(run) as counter, RunProgress(*_image_counts(run, pending)) as progress:
        macs: MacsOf = _by_workers
        if executor.apart and run.config.workers.gpus_each > 0:  # a GPU must not wait for a count
            counter.start(pending)  # while the first worker loads
            macs = counter.of
        pool = render_pool(run, pending, retries, macs)
        for event in executor.run(pool):
            if isinstance(event, ShardResult):
                if event.host not in hosts:
                    _check_visible(run, event)
                    hosts.add(event.host)
                progress.add(event)
                devices.add(event.device)
                invariant.add(event.invariant)
                damaged.pop(_file_of(event), None)
                failures.add(event.errors, event.first_error)
                for field, ids in event.cut._asdict().items():
                    truncated.setdefault((event.model, field), {}).update(dict.fromkeys(ids))
            elif isinstance(event, GiveUp):
                problems[str(event)] = None
                prompts = event.task.shard.prompts if isinstance(event.task, RenderTask) else 0
                failures.add(prompts * run.config.sampling.images_per_prompt, event.reason)
            elif isinstance(event, Stop):
                stopped = str(event)
            elif isinstance(event, ShardProgress):
                progress.add_progress(event)
            else:
                progress.tick(pool.waits_for or executor.waits_for)
            stopped = stopped or failures.too_many()
            if stopped:
                break
    problems |= {_truncation(*key, ids): None for key, ids in truncated.items() if ids}
    if False in invariant:
        problems[_NOT_INVARIANT] = None
    note_damaged(run.folder, damaged)
    known = None if invariant <= {None} else invariant == {True}
    return RenderOutcome(", ".join(sorted(devices)), tuple(problems), stopped, known)


def _truncation(model: str, field: str, ids: Collection[str]) -> str:
    first = ", ".join(sorted(ids)[:_IDS_NAMED]) + (", ..." if len(ids) > _IDS_NAMED else "")
    what = "prompt" if field == "prompts" else "negative prompt"
    are = f"{what} is" if len(ids) == 1 else f"{what}s are"
    of = "" if field == "prompts" else "of "
    return f"{model}: {len(ids):,} {are} too long for the text encoder and truncated: {of}{first}"


class _Failures:
    """Counts the images that failed."""

    def __init__(self, run: Run, pending: Pending):
        sizes = {shard.index: shard.prompts for shard in run.shards}
        shards = (item for by_shard in pending.values() for item in by_shard.items())
        prompts = sum(sizes[index] * len(arms) for index, arms in shards)
        self._images = prompts * run.config.sampling.images_per_prompt
        self._limit = allowed(run.config.max_errors, self._images)
        self._errors = 0
        self._reasons: Counter[str] = Counter()

    def add(self, errors: int, reason: str | None) -> None:
        if errors and reason:
            self._errors += errors
            self._reasons[reason] += 1

    def too_many(self) -> str | None:
        """Returns why the run must stop; None if it need not."""
        if self._errors <= self._limit:
            return None
        ((reason, _),) = self._reasons.most_common(1)
        return (
            f"{self._errors} of {self._images} images failed, more than max_errors allows "
            f"({self._limit:g}); max_errors: 0.5 would allow half of them; most often: {reason}"
        )


def _image_counts(
    run: Run, pending: Pending
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """Returns, by model and arm, the number of images, and how many of them are finished."""
    per_prompt = run.config.sampling.images_per_prompt
    totals = {(model.name, arm): run.images_per_arm for model, arm, _ in run.pairs()}
    done = dict(totals)
    for shard in run.shards:
        for model, missing in pending.items():
            for arm in missing.get(shard.index, ()):
                done[model, arm] -= shard.prompts * per_prompt
    return totals, done


def _check_visible(run: Run, result: ShardResult) -> None:
    """Raises UserError if a file that a worker wrote is not in the output."""
    until = time.monotonic() + _VISIBLE_WITHIN
    while not run.folder.exists(_file_of(result)):
        if time.monotonic() > until:
            raise UserError(
                f"output {run.folder}: {result.host} wrote {_file_of(result)}, but this machine "
                "does not see it: the folder is not shared. Fix: give an output that all nodes "
                "share, or a URI (s3://, gs://)"
            )
        time.sleep(0.5)


def _file_of(result: ShardResult) -> str:
    return layout.shard_file(layout.images(result.model, result.arm), result.shard)
