"""Renders what is pending on an executor's workers, says how far it is, and stops a broken run."""

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
from tgate_batch.execute.task import RenderTask, Task
from tgate_batch.output import layout
from tgate_batch.output.error_rows import allowed
from tgate_batch.output.run import Pending, Prepared, Run, damaged_files, note_damaged
from tgate_batch.records import ShardProgress, ShardResult

_UNEVEN = (
    "equal rows of a batch come out unequal on some worker, so a picture's last bits depend on its "
    "place; on a CPU, workers.cpus_each: 1 mends it"
)
_IDS_SAID = 3  # of prompts that were cut
_SECONDS_TO_SEE = 10.0  # in which a file that another machine wrote comes into view

OnlyErrors = Mapping[tuple[str, int], frozenset[str]]  # (model, shard) -> arms


class RenderOutcome(NamedTuple):
    """The devices that drew, and what went wrong beside single pictures: a line each.

    ``stopped`` says why the run ended before its end. ``invariant``: whether not a bit of a picture
    depends on its place, on any of the devices; None: not known.
    """

    devices: str
    problems: tuple[str, ...] = ()
    stopped: str | None = None
    invariant: bool | None = None


def _by_workers(*_: Any) -> Mapping[str, int] | None:
    """Each worker counts for itself: it has torch loaded, which costs the driver seconds."""
    return None


def tasks(
    run: Run,
    pending: Pending,
    again: OnlyErrors | None = None,
    macs: Callable[..., Mapping[str, int] | None] = _by_workers,
) -> Pool:
    """A pool of all that is pending, for an executor to run; ``again``: its error rows alone.

    ``macs``: of (model, arm, kind of rows); None: workers count for themselves.
    """
    count = sum(len(arms) for shards in pending.values() for arms in shards.values())
    return Pool(_groups(run, pending, again or {}, macs), count)


def _groups(
    run: Run,
    pending: Pending,
    again: OnlyErrors,
    macs: Callable[..., Mapping[str, int] | None],
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
                        arm in again.get((model.name, shard.index), ()),
                        partial(macs, model, arm, shard.batch_key),
                        run.promised_checkpoint(model.name, arm),
                    )
                    for arm in arms
                ]


def render_pending(
    run: Prepared, pending: Pending, executor: Executor, again: OnlyErrors | None = None
) -> RenderOutcome:
    """Renders what is pending, until it is done or too much of it fails (``max_errors``).

    Raises UserError where a worker's files do not arrive in the output.
    """
    left = damaged_files(run.folder)
    devices: set[str] = set()
    hosts: set[str] = set()
    problems: dict[str, None] = {}
    failures = _Failures(run, pending)
    cut: dict[tuple[str, str], dict[str, None]] = {}  # by model and kind, as they are reported
    stopped: str | None = None
    invariant: set[bool | None] = set()
    with MacsCounter(run) as counts, RunProgress(*_counts(run, pending)) as progress:
        macs = _by_workers
        if executor.apart and run.config.workers.gpus_each > 0:  # no GPU is to wait for a count
            counts.ahead(pending)  # while the first worker loads
            macs = counts.of
        pool = tasks(run, pending, again, macs)
        for said in executor.run(pool):
            if isinstance(said, ShardResult):
                if said.host not in hosts:
                    _check_arrived(run, said)
                    hosts.add(said.host)
                progress.add(said)
                devices.add(said.device)
                invariant.add(said.invariant)
                left.pop(_file_of(said), None)
                failures.add(said.errors, said.first_error)
                for kind, ids in said.cut._asdict().items():
                    cut.setdefault((said.model, kind), {}).update(dict.fromkeys(ids))
            elif isinstance(said, GiveUp):
                problems[str(said)] = None
                failures.add(_pictures(run, said.task), said.reason)
            elif isinstance(said, Stop):
                stopped = str(said)
            elif isinstance(said, ShardProgress):
                progress.drawn(said)
            else:
                progress.tick(pool.waits_for or executor.waits_for)
            stopped = stopped or failures.too_many()
            if stopped:
                break
    problems |= dict.fromkeys(_of_cut(*key, ids) for key, ids in cut.items() if ids)
    if False in invariant:
        problems[_UNEVEN] = None
    note_damaged(run.folder, left)
    known = None if invariant <= {None} else invariant == {True}
    return RenderOutcome(", ".join(sorted(devices)), tuple(problems), stopped, known)


def _of_cut(model: str, kind: str, ids: Collection[str]) -> str:
    first = ", ".join(sorted(ids)[:_IDS_SAID])
    more = ", ..." if len(ids) > _IDS_SAID else ""
    what = "prompt" if kind == "prompts" else "negative prompt"
    are = f"{what} is" if len(ids) == 1 else f"{what}s are"
    of = "" if kind == "prompts" else "of "
    return f"{model}: {len(ids):,} {are} longer than it reads, and cut there: {of}{first}{more}"


class _Failures:
    """Counts the pictures that have none."""

    def __init__(self, run: Run, pending: Pending):
        shards = {shard.index: shard.prompts for shard in run.shards}
        prompts = sum(
            shards[index] * len(arms) for held in pending.values() for index, arms in held.items()
        )
        self._pictures = prompts * run.config.sampling.images_per_prompt
        self._limit = allowed(run.config.max_errors, self._pictures)
        self._errors = 0
        self._reasons: Counter[str] = Counter()

    def add(self, errors: int, why: str | None) -> None:
        if errors and why:
            self._errors += errors
            self._reasons[why] += 1

    def too_many(self) -> str | None:
        """Why the run is to stop; None where it is not."""
        if self._errors <= self._limit:
            return None
        (why, _), *_ = self._reasons.most_common(1)
        return (
            f"{self._errors} of {self._pictures} pictures failed, more than max_errors allows "
            f"({self._limit:g}); most often: {why}; max_errors: 0.5 would allow half of them"
        )


def _counts(
    run: Run, pending: Pending
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """By model and arm: its pictures, and those that are there."""
    each = run.config.sampling.images_per_prompt
    totals = {(model.name, arm): run.images_per_arm for model, arm, _ in run.pairs()}
    done = dict(totals)
    for shard in run.shards:
        for model, missing in pending.items():
            for arm in missing.get(shard.index, ()):
                done[model, arm] -= shard.prompts * each
    return totals, done


def _pictures(run: Run, task: Task) -> int:
    prompts = task.shard.prompts if isinstance(task, RenderTask) else 0
    return prompts * run.config.sampling.images_per_prompt


def _check_arrived(run: Run, receipt: ShardResult) -> None:
    """Raises UserError where a file that a worker wrote is not in the output."""
    until = time.monotonic() + _SECONDS_TO_SEE
    while not run.folder.exists(_file_of(receipt)):
        if time.monotonic() > until:
            raise UserError(
                f"output {run.folder}: {receipt.host} wrote {_file_of(receipt)}, and it is not "
                "there from here: that machine has a folder of its own under this name; give an "
                "output that all nodes share, or a URI (s3://, gs://)"
            )
        time.sleep(0.5)


def _file_of(receipt: ShardResult) -> str:
    return layout.shard_file(layout.images(receipt.model, receipt.arm), receipt.shard)
