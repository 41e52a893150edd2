"""Proves an output folder: that every file in it is what the ledger and the prompts demand.

It reads everything and loads no model. Shards are checked by a few threads, each a row group at a
time, so memory does not grow with the run.
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
from tgate_batch.execute import progress
from tgate_batch.execute.verify import results, tables
from tgate_batch.execute.verify.findings import (
    DAMAGED,
    DECODED,
    ENTRIES,
    FOREIGN,
    JSONS,
    KEPT,
    LOST,
    MEASURED,
    MISSING,
    NAMES,
    PICTURES,
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

THREADS = min(8, (os.cpu_count() or 1) + 2)  # Arrow and Pillow work beside each other
_AHEAD = 4  # shards a thread that wait


def verify(output: str) -> tuple[Findings, Run | None]:
    """Checks everything in a folder; the run in it is None where it cannot be told.

    Raises UserError where the folder holds no run, or one of another format.
    """
    found = Findings()
    run = open_output(output, found)
    if run is not None:
        _Checking(run, found).all()
    found.sort()
    return found, run


@dataclass(frozen=True)
class _OfShard:
    """What came of one shard of one arm; ``rows`` by status, None where some cannot be told."""

    pair: Pair
    found: Findings
    rows: Counter[str] | None


class _Checking:
    """One check of a whole run."""

    def __init__(self, run: Run, found: Findings):
        self._run = run
        self._folder = run.folder
        self._found = found
        self._present = frozenset(run.folder.names(""))
        self._left = set(self._present)  # what nobody has asked for yet
        self._entries = check_provenance(run, self._present)
        self._arms = [(model.name, arm) for model, arm, _ in run.pairs()]
        self._measured: dict[Pair, list[str]] = defaultdict(list)
        for folder in self._entries.folders:
            role = layout.role_of_folder(folder)
            if role is not None:
                self._measured[str(role.model), str(role.arm)].append(folder)
        self._lost = False  # whether the plans of some shards are not known
        self._rows: dict[Pair, Counter[str]] = defaultdict(Counter)
        self._unsure: set[Pair] = set()  # arms of which some rows cannot be told

    def all(self) -> None:
        self._ledger()
        pool = ThreadPoolExecutor(THREADS)
        try:
            self._files(pool)
        finally:
            pool.shutdown(cancel_futures=True)
        self._jsons()
        self._names()

    def _files(self, pool: ThreadPoolExecutor) -> None:
        expected = len(self._run.shards) * len({*self._arms, *self._entries.pictures})
        counter = progress.WorkCounter("checking", "files of pictures", expected)
        for done in _windowed(pool, self._shards()):
            self._found.merge(done.found)
            if done.rows is None:
                self._unsure.add(done.pair)
            else:
                self._rows[done.pair] += done.rows
            counter.add()
        sums = list(self._sums())
        counter = progress.WorkCounter("checking", "files of sums and statistics", len(sums))
        for what, name, reasons in pool.map(lambda check: check(), sums):
            self._found.add(what, name, reasons)
            counter.add()

    def _ledger(self) -> None:
        self._found.checked[ENTRIES] += len(self._run.ledger.names())
        for name, (why, right) in self._entries.wrong.items():
            self._fault(ENTRIES, DAMAGED, layout.LEDGER, f"{name}: {why}", (name, right))
        for why in self._entries.config:
            advice = "run tgate-batch render with the config that drew the pictures"
            self._fault(JSONS, KEPT, layout.RUN, f"{why}; {advice}")

    def _fault(self, *about: Any) -> None:
        self._found.faults.append(Fault(*about))

    def _shards(self) -> Iterator[Callable[[], _OfShard]]:
        """A call an arm and shard, once its prompts are checked."""
        left = [pair for pair in self._entries.pictures if pair not in self._arms]
        for plan, shard in self._prompts():
            for pair in (*self._arms, *left):
                for folder in (layout.images(*pair), *self._measured[pair]):
                    if folder in self._entries.folders or pair in self._entries.pictures:
                        self._left.discard(layout.shard_file(folder, plan.index))
                yield partial(self._shard, pair, plan, shard)

    def _prompts(self) -> Iterator[tuple[ShardPlan, Shard | None]]:
        """Every shard whose plan is known, with its prompts unless they are damaged."""
        parts = Parts(self._folder, self._present)
        yield from parts.shards()
        for name, reasons in parts.reasons.items():
            self._left.discard(name)
            self._found.add(PROMPTS, name, [*reasons, ADVICE] if reasons else [], LOST)
        about = json.loads(self._folder.read(layout.RUN))
        self._found.faults += parts.faults(self._run.ledger, about)
        self._lost = parts.lost

    def _shard(self, pair: Pair, plan: ShardPlan, shard: Shard | None) -> _OfShard:
        """Checks an arm's pictures of a shard, and what was measured of them."""
        found, settings = Findings(), self._entries.pictures.get(pair)
        name = layout.shard_file(layout.images(*pair), plan.index)
        rows = None
        if name not in self._present:
            if pair in self._arms:
                found.faults.append(Fault(PICTURES, MISSING, name, "it is not there"))
        elif settings is not None and self._is_judged(layout.images(*pair)):
            identity = layout.file_identity(settings, plan.digest)
            whose = Expected(*pair, settings, identity, shard)
            pictures = tables.check_images(self._folder, name, whose)
            found.add(PICTURES, name, pictures.reasons)
            found.checked[DECODED] += pictures.decoded
            found.without_digests += not pictures.digests
            rows = pictures.rows
            found.checked[ROWS] += len(rows or ())
        broken, lacking = None, False
        # The rows' own measurement first: it says which pictures have no features.
        for folder in sorted(self._measured[pair], key=lambda one: one != _rows_of(pair)):
            file = layout.shard_file(folder, plan.index)
            if file not in self._present:
                if name in self._present and folder in self._entries.scored.get(pair, ()):
                    lacking = True
                    found.faults.append(Fault(MEASURED, MISSING, file, "it is not there"))
            elif self._is_judged(folder):
                identity = layout.file_identity(self._entries.folders[folder], plan.digest)
                reasons, why = tables.check_measurement(self._folder, file, identity, rows, broken)
                found.add(MEASURED, file, reasons)
                if folder == _rows_of(pair) and not reasons:
                    broken = why
        known = None if rows is None or lacking else Counter(row.status for row in rows)
        return _OfShard(pair, found, known)

    def _is_judged(self, folder: str) -> bool:
        """Whether a folder's files can be held against its entry."""
        return self._entries.wrong.get(folder, ("", {}))[1] is not None

    def _sums(self) -> Iterator[Callable[[], tuple[str, str, list[str]]]]:
        """A call a file of sums, of statistics, of a reference, and a part of one."""
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
                yield partial(_told, name, check)

    def _identities(self) -> Iterator[tuple[str, str]]:
        """The file of every full chunk's sums, and what it is to be made of."""
        for pair, folders in self._measured.items():
            if (folder := layout.sums_of(*pair)) in folders:
                made = self._entries.folders[folder]
                sizes = [int(made.get(key) or 1) for key in ("images_per_prompt", "batch_size")]
                for chunk in chunks(self._run.shards, *sizes):
                    if chunk.full:
                        yield layout.sums(*pair, chunk.index), aggregate.identity(made, chunk)

    def _counts(self, pair: Pair) -> ExpectedCounts | None:
        if self._lost or pair in self._unsure or pair not in self._arms:
            return None
        return ExpectedCounts(self._rows[pair]["ok"], self._rows[pair]["error"])

    def _jsons(self) -> None:
        """Scores, the report, and what workers and invocations left."""
        known = {*self._arms, *self._entries.pictures}
        for name in sorted(self._left):
            role = layout.role_of(name)
            if role is not None and role.kind == "worker":
                self._json(name, results.worker(self._folder, name))
        for pair in sorted(known):
            if (name := layout.scores(*pair)) in self._present:
                self._json(name, results.scores(self._folder, name, self._counts(pair)))
            elif pair in self._arms and pair in self._entries.pictures:
                self._fault(JSONS, MISSING, name, "it is not there")
        report = results.report(self._folder)
        for name in (layout.REPORT_JSON, layout.REPORT_MARKDOWN, layout.REPORT_PAGE):
            if name in report:
                self._json(name, report[name])
            elif self._entries.pictures:
                self._fault(JSONS, MISSING, name, "it is not there")
        if layout.CARD in self._present:
            self._json(layout.CARD, results.card(self._folder, layout.CARD))
        if layout.HISTORY in self._present:
            self._json(layout.HISTORY, results.history(self._folder, layout.HISTORY))
        for name in (layout.RUN, layout.LEDGER):
            self._json(name, results.readable(self._folder, name))
        self._plan_search()
        if layout.DAMAGED in self._present:
            self._noted()

    def _plan_search(self) -> None:
        """The files of a plan search. The list of searches cannot be made again."""
        for name in (layout.FRONTIER, layout.RECOMMENDED):
            if name in self._present:
                self._json(name, results.readable(self._folder, name))
        if layout.SEARCHES in self._present:
            self._left.discard(layout.SEARCHES)
            reasons = results.readable(self._folder, layout.SEARCHES)
            advice = "restore it from a copy, or search in a new output"
            self._found.add(JSONS, layout.SEARCHES, [*reasons, advice] if reasons else [], KEPT)

    def _json(self, name: str, reasons: list[str]) -> None:
        self._left.discard(name)
        self._found.add(JSONS, name, reasons)

    def _noted(self) -> None:
        """Files that a run found damaged, and none has drawn again."""
        noted: dict[str, str] = {}
        reasons = []
        try:
            noted = runs.damaged_files(self._folder)
        except UserError as error:  # the list itself is damaged, and goes
            reasons = [str(error)]
        self._json(layout.DAMAGED, reasons)
        told = {fault.name for fault in self._found.faults}
        for name, why in noted.items():
            if name not in told:
                self._fault(PICTURES, DAMAGED, name, f"a run noted that it is damaged: {why}")

    def _names(self) -> None:
        """What is left is of nothing in this run."""
        self._found.checked[NAMES] += len(self._present)
        for name in self._folder.temporary():
            self._fault(NAMES, STRAY, name, "a writer that was killed left it")
        claims = {name for name in self._left if layout.token_of(name)}
        unjudged: list[str] = []
        for name in sorted(self._left - claims - {layout.CARD, layout.CLAIM}):
            role = layout.role_of(name)
            if role is None:
                reason = "it has no name of a run's; remove it if it is not yours"
                self._fault(NAMES, FOREIGN, name, reason)
            elif self._lost:
                unjudged.append(name)
            else:
                self._fault(NAMES, STRAY, name, "it is of no arm and shard of this run")
        if unjudged:
            more = f"and {len(unjudged) - 1:,} more files " if len(unjudged) > 1 else ""
            why = f"it {more}cannot be judged while prompts are damaged or missing"
            self._fault(NAMES, KEPT, unjudged[0], why)


def _rows_of(pair: Pair) -> str:
    return layout.measured(layout.ROWS, *pair)


def _told(name: str, check: Callable[[], list[str]]) -> tuple[str, str, list[str]]:
    return SUMS, name, check()


def _windowed(
    pool: ThreadPoolExecutor, calls: Iterable[Callable[[], _OfShard]]
) -> Iterator[_OfShard]:
    """What the calls return, as they end; only some of them wait at a time."""
    waiting: set[Future[_OfShard]] = set()
    for call in calls:
        waiting.add(pool.submit(call))
        if len(waiting) >= THREADS * _AHEAD:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)
    yield from (one.result() for one in waiting)
