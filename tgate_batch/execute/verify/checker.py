"""Verifies an output folder: every file in it must match the ledger and the prompts.

It reads everything and loads no model. A few threads check shards, one row group at a time, so
memory does not grow with the run.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.verify import results, tables
from tgate_batch.execute.verify.findings import (
    DAMAGED,
    DECODED,
    ENTRIES,
    FOREIGN,
    IMAGES,
    JSONS,
    KEPT,
    LOST,
    MEASURED,
    MISSING,
    NAMES,
    PROMPTS,
    ROWS,
    STRAY,
    SUMS,
    Fault,
    Findings,
)
from tgate_batch.execute.verify.prompts import ADVICE, Parts
from tgate_batch.execute.verify.provenance import Pair, check_provenance, open_output
from tgate_batch.execute.verify.results import ExpectedCounts
from tgate_batch.execute.verify.tables import Expected
from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Run
from tgate_batch.records import Shard
from tgate_batch.score import aggregate
from tgate_batch.score.partial_sums import chunks

THREADS = min(8, (os.cpu_count() or 1) + 2)  # Arrow and Pillow release the interpreter lock
_AHEAD = 4  # queued shards per thread
_GONE = "it does not exist"


def verify(output: str) -> tuple[Findings, Run | None]:
    """Checks everything in a folder; returns the run, or None if it cannot be loaded.

    Raises UserError if the folder has no run, or one of another format.
    """
    findings = Findings()
    run = open_output(output, findings)
    if run is not None:
        _Check(run, findings).all()
    findings.sort()
    return findings, run


@dataclass(frozen=True)
class _ShardCheck:
    """The findings of one shard of an arm; ``rows`` by status, None if some are not known."""

    pair: Pair
    findings: Findings
    rows: Counter[str] | None


class _Check:
    """One check of a whole run."""

    def __init__(self, run: Run, findings: Findings):
        self._run = run
        self._folder = run.folder
        self._findings = findings
        self._present = frozenset(run.folder.names(""))
        self._left = set(self._present)  # the files not checked yet
        self._entries = check_provenance(run, self._present)
        self._arms = [(model.name, arm) for model, arm, _ in run.pairs()]
        self._measured: dict[Pair, list[str]] = defaultdict(list)
        for folder in self._entries.folders:
            role = layout.role_of_folder(folder)
            if role is not None:
                self._measured[str(role.model), str(role.arm)].append(folder)
        self._lost = False  # True if the plans of some shards are not known
        self._rows: dict[Pair, Counter[str]] = defaultdict(Counter)
        self._unsure: set[Pair] = set()  # arms with rows that are not known

    def all(self) -> None:
        self._check_ledger()
        pool = ThreadPoolExecutor(THREADS)
        try:
            self._check_files(pool)
        finally:
            pool.shutdown(cancel_futures=True)
        self._check_jsons()
        self._check_names()

    def _check_files(self, pool: ThreadPoolExecutor) -> None:
        expected = len(self._run.shards) * len({*self._arms, *self._entries.images})
        counter = WorkCounter("checking", IMAGES, expected)
        for done in _windowed(pool, self._shards()):
            self._findings.merge(done.findings)
            if done.rows is None:
                self._unsure.add(done.pair)
            else:
                self._rows[done.pair] += done.rows
            counter.add()
        sums = list(self._sums())
        counter = WorkCounter("checking", "files of sums and statistics", len(sums))
        for name, reasons in pool.map(lambda check: check(), sums):
            self._findings.add(SUMS, name, reasons)
            counter.add()

    def _check_ledger(self) -> None:
        self._findings.checked[ENTRIES] += len(self._run.ledger.names())
        for name, (why, right) in self._entries.wrong.items():
            self._fault(ENTRIES, DAMAGED, layout.LEDGER, f"{name}: {why}", (name, right))
        for why in self._entries.config:
            advice = "Fix: run tgate-batch render with the config of the stored images"
            self._fault(JSONS, KEPT, layout.RUN, f"{why}. {advice}")

    def _fault(self, *values: Any) -> None:
        self._findings.faults.append(Fault(*values))

    def _shards(self) -> Iterator[Callable[[], _ShardCheck]]:
        """Yields a call for each arm and shard, once its prompts are checked."""
        former = [pair for pair in self._entries.images if pair not in self._arms]
        for plan, shard in self._prompts():
            for pair in (*self._arms, *former):
                for folder in (layout.images(*pair), *self._measured[pair]):
                    if folder in self._entries.folders or pair in self._entries.images:
                        self._left.discard(layout.shard_file(folder, plan.index))
                yield partial(self._check_shard, pair, plan, shard)

    def _prompts(self) -> Iterator[tuple[ShardPlan, Shard | None]]:
        """Yields every shard whose plan is known, with its prompts unless they are damaged."""
        parts = Parts(self._folder, self._present)
        yield from parts.shards()
        for name, reasons in parts.reasons.items():
            self._left.discard(name)
            self._findings.add(PROMPTS, name, [*reasons, ADVICE] if reasons else [], LOST)
        run = json.loads(self._folder.read(layout.RUN))
        self._findings.faults += parts.faults(self._run.ledger, run)
        self._lost = parts.lost

    def _check_shard(self, pair: Pair, plan: ShardPlan, shard: Shard | None) -> _ShardCheck:
        """Checks an arm's images of a shard, and their measurements."""
        findings, settings = Findings(), self._entries.images.get(pair)
        name = layout.shard_file(layout.images(*pair), plan.index)
        rows = None
        if name not in self._present:
            if pair in self._arms:
                findings.faults.append(Fault(IMAGES, MISSING, name, _GONE))
        elif settings is not None and self._is_judged(layout.images(*pair)):
            identity = layout.file_identity(settings, plan.digest)
            expected = Expected(*pair, settings, identity, shard)
            images = tables.check_images(self._folder, name, expected)
            findings.add(IMAGES, name, images.reasons)
            findings.checked[DECODED] += images.decoded
            findings.without_digests += not images.digests
            rows = images.rows
            findings.checked[ROWS] += len(rows or ())
        broken, lacking = None, False
        # The measurement of rows first, because it lists the images without features.
        for folder in sorted(self._measured[pair], key=lambda one: one != _rows_of(pair)):
            file = layout.shard_file(folder, plan.index)
            if file not in self._present:
                if name in self._present and folder in self._entries.scored.get(pair, ()):
                    lacking = True
                    findings.faults.append(Fault(MEASURED, MISSING, file, _GONE))
            elif self._is_judged(folder):
                identity = layout.file_identity(self._entries.folders[folder], plan.digest)
                reasons, broken_here = tables.check_measurement(
                    self._folder, file, identity, rows, broken
                )
                findings.add(MEASURED, file, reasons)
                if folder == _rows_of(pair) and not reasons:
                    broken = broken_here
        known = None if rows is None or lacking else Counter(row.status for row in rows)
        return _ShardCheck(pair, findings, known)

    def _is_judged(self, folder: str) -> bool:
        """True if the settings of a folder's files are known."""
        return self._entries.wrong.get(folder, ("", {}))[1] is not None

    def _sums(self) -> Iterator[Callable[[], tuple[str, list[str]]]]:
        """Yields a call for each file of sums or statistics, each reference and part of one."""
        folder = self._folder
        identities = dict(self._identities())
        for name in sorted(self._left):
            role = layout.role_of(name)
            if role is None:
                continue
            pair = (str(role.model), str(role.arm))
            check: Callable[[], list[str]] | None = None
            if role.kind == "reference" or (
                role.kind == "statistics"
                and layout.features(str(role.of), *pair) in self._measured[pair]
            ):
                check = partial(results.statistics, folder, name)
            elif role.kind == "part":
                check = partial(tables.check_pages, folder, name)
            elif role.kind == "conclusion" and layout.sums_of(*pair) in self._measured[pair]:
                check = partial(results.conclusion, folder, name, self._counts(pair))
            elif name in identities:
                check = partial(results.summary, folder, name, identities[name])
            if check is not None:
                self._left.discard(name)
                yield partial(_named, name, check)

    def _identities(self) -> Iterator[tuple[str, str]]:
        """Yields the file of every full chunk's sums, and its expected identity."""
        for pair, folders in self._measured.items():
            if (folder := layout.sums_of(*pair)) in folders:
                settings = self._entries.folders[folder]
                sizes = [int(settings.get(key) or 1) for key in ("images_per_prompt", "batch_size")]
                for chunk in chunks(self._run.shards, *sizes):
                    if chunk.full:
                        yield layout.sums(*pair, chunk.index), aggregate.identity(settings, chunk)

    def _counts(self, pair: Pair) -> ExpectedCounts | None:
        if self._lost or pair in self._unsure or pair not in self._arms:
            return None
        return ExpectedCounts(self._rows[pair]["ok"], self._rows[pair]["error"])

    def _check_jsons(self) -> None:
        """Checks the scores, the report, and the notes of workers and invocations."""
        known = {*self._arms, *self._entries.images}
        for name in sorted(self._left):
            role = layout.role_of(name)
            if role is not None and role.kind == "worker":
                self._json(name, results.worker(self._folder, name))
        for pair in sorted(known):
            if (name := layout.scores(*pair)) in self._present:
                self._json(name, results.scores(self._folder, name, self._counts(pair)))
            elif pair in self._arms and pair in self._entries.images:
                self._fault(JSONS, MISSING, name, _GONE)
        report = results.report(self._folder)
        for name in (layout.REPORT_JSON, layout.REPORT_MARKDOWN, layout.REPORT_PAGE):
            if name in report:
                self._json(name, report[name])
            elif self._entries.images:
                self._fault(JSONS, MISSING, name, _GONE)
        if layout.CARD in self._present:
            self._json(layout.CARD, results.card(self._folder, layout.CARD))
        if layout.HISTORY in self._present:
            self._json(layout.HISTORY, results.history(self._folder, layout.HISTORY))
        for name in (layout.RUN, layout.LEDGER):
            self._json(name, results.readable(self._folder, name))
        self._plan_search()
        if layout.DAMAGED in self._present:
            self._check_damaged_list()

    def _plan_search(self) -> None:
        """The files of a plan search. The list of searches cannot be made again."""
        for name in (layout.FRONTIER, layout.RECOMMENDED):
            if name in self._present:
                self._json(name, results.readable(self._folder, name))
        if layout.SEARCHES in self._present:
            self._left.discard(layout.SEARCHES)
            reasons = results.readable(self._folder, layout.SEARCHES)
            advice = "restore it from a copy, or search in a new output"
            self._findings.add(JSONS, layout.SEARCHES, [*reasons, advice] if reasons else [], KEPT)

    def _json(self, name: str, reasons: list[str]) -> None:
        self._left.discard(name)
        self._findings.add(JSONS, name, reasons)

    def _check_damaged_list(self) -> None:
        """Checks the list of files that a run found damaged and that were not rendered again."""
        damaged: dict[str, str] = {}
        reasons = []
        try:
            damaged = runs.damaged_files(self._folder)
        except UserError as error:  # the list itself is damaged
            reasons = [str(error)]
        self._json(layout.DAMAGED, reasons)
        known = {fault.name for fault in self._findings.faults}
        for name, why in damaged.items():
            if name not in known:
                self._fault(IMAGES, DAMAGED, name, f"a run noted that it is damaged: {why}")

    def _check_names(self) -> None:
        """Reports the files that do not belong to this run."""
        self._findings.checked[NAMES] += len(self._present)
        for name in self._folder.temporary():
            self._fault(NAMES, STRAY, name, "it is the unfinished file of a killed process")
        claims = {name for name in self._left if layout.token_of(name)}
        unjudged: list[str] = []
        for name in sorted(self._left - claims - {layout.CARD, layout.CLAIM}):
            role = layout.role_of(name)
            if role is None:
                reason = "it is not named like a file of a run. Fix: remove it if it is not yours"
                self._fault(NAMES, FOREIGN, name, reason)
            elif self._lost:
                unjudged.append(name)
            else:
                self._fault(NAMES, STRAY, name, "it belongs to no arm and shard of this run")
        if unjudged:
            more = f"and {len(unjudged) - 1:,} more files " if len(unjudged) > 1 else ""
            why = f"it {more}cannot be judged while prompts are damaged or missing"
            self._fault(NAMES, KEPT, unjudged[0], why)


def _rows_of(pair: Pair) -> str:
    return layout.measured(layout.ROWS, *pair)


def _named(name: str, check: Callable[[], list[str]]) -> tuple[str, list[str]]:
    return name, check()


def _windowed(
    pool: ThreadPoolExecutor, calls: Iterable[Callable[[], _ShardCheck]]
) -> Iterator[_ShardCheck]:
    """Yields the results of the calls as they end; only some are queued at a time."""
    waiting: set[Future[_ShardCheck]] = set()
    for call in calls:
        waiting.add(pool.submit(call))
        if len(waiting) >= THREADS * _AHEAD:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)
    yield from (one.result() for one in waiting)
