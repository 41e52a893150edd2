"""Checks that an output's frozen prompts are those that its shards were planned with."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from tgate_batch.errors import message_of
from tgate_batch.execute.verify.findings import (
    LOST,
    MISSING,
    PROMPTS,
    UNREAD,
    Fault,
    guarded,
)
from tgate_batch.execute.verify.tables import BROKEN
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.provenance import Provenance
from tgate_batch.output.seal import TableSeal
from tgate_batch.records import Shard
from tgate_batch.storage import Folder

ADVICE = "Fix: let --repair write it again from the prompt file, or restore it from a copy"


class Parts:
    """The files of frozen prompts, read once.

    ``reasons``: what is wrong with each file. ``lost``: True if the plans of some shards are not
    known.
    """

    def __init__(self, folder: Folder, present: frozenset[str]):
        self._folder = folder
        mine = [name for name in present if name.startswith(f"{layout.PROMPTS}/")]
        self._names = sorted(name for name in mine if layout.role_of(name) is not None)
        self._ids: set[str] = set()
        self._duplicates = 0
        self._plans: list[ShardPlan] = []
        self.reasons: dict[str, list[str]] = {}
        self.lost = False

    def shards(self) -> Iterator[tuple[ShardPlan, Shard | None]]:
        """Yields every shard whose plan is known, with its prompts, or None if they are damaged."""
        for name in self._names:
            reasons = self.reasons[name] = []
            try:
                yield from self._part(name, reasons)
            except Exception as error:  # Arrow's have no common parent
                reasons.append(f"{UNREAD}: {message_of(error, 300)}")
                self.lost = True

    def faults(self, ledger: Provenance, run: Mapping[str, Any]) -> Iterator[Fault]:
        """Yields the faults of all files together; ``run``: the content of the run's file."""
        there, wanted = len(self._plans), _count(run)
        if self._duplicates:
            why = f"{self._duplicates:,} ids are duplicates. {ADVICE}"
            yield Fault(PROMPTS, LOST, layout.PROMPTS, why)
        if not self.lost:
            missing = prompt_store.missing_parts(self._plans, ledger)
            self.lost = bool(missing)
            for name in missing:
                why = f"it is missing: of {wanted:,} shards {there:,} are here. {ADVICE}"
                yield Fault(PROMPTS, LOST, name, why)
        if not self._duplicates and not self.lost and (there < wanted or not there):
            why = f"of {wanted:,} shards {there:,} are frozen"
            yield Fault(PROMPTS, MISSING, layout.PROMPTS, why)

    def _part(self, name: str, reasons: list[str]) -> Iterator[tuple[ShardPlan, Shard | None]]:
        with parquet.open_table(self._folder, name) as file:
            plans = prompt_store.plans(file)
            self._plans += plans
            wrong_layout = _check_layout(file, name, plans)
            reasons += wrong_layout
            seal = TableSeal(parquet.footer(file))
            for plan in plans:
                shards: list[Shard] = []
                if not wrong_layout:
                    why = _read_shard(file, plan, shards, seal)
                    reasons += [f"shard {plan.index} {reason}" for reason in why]
                    if not why:
                        self._count(shards[0])
                yield plan, shards[0] if shards else None
            if not reasons and seal.is_broken():
                reasons.append(BROKEN)

    def _count(self, shard: Shard) -> None:
        for prompt in shard.prompts:
            self._duplicates += prompt.id in self._ids
            self._ids.add(prompt.id)


def _count(about: Mapping[str, Any]) -> int:
    """Returns the number of shards in the content of a file; 0 if it has none."""
    shards = about.get("shards")
    return shards if isinstance(shards, int) else 0


def _check_layout(file: pq.ParquetFile, name: str, plans: list[ShardPlan]) -> list[str]:
    role = layout.role_of(name)
    groups = [(role and role.number, group) for group in range(file.num_row_groups)]
    if [(plan.part, plan.group) for plan in plans] != groups:
        return ["its plans differ from its row groups"]
    known = prompt_store.SCHEMA, prompt_store.FULL_SCHEMA, prompt_store.FULL_BEFORE_STRENGTH
    if not any(map(file.schema_arrow.equals, known)):
        return ["its columns are not those of frozen prompts"]
    return []


@guarded
def _read_shard(
    file: pq.ParquetFile, plan: ShardPlan, into: list[Shard], seal: TableSeal
) -> list[str]:
    """Reads a shard into a list, unless something is wrong, and into its file's seal."""
    table = file.read_row_group(plan.group)
    seal.add(table)
    rows = table.to_pylist()
    shard = Shard(plan.index, prompt_store.prompts_of(plan, rows))
    if {row["shard"] for row in rows} != {plan.index} or len(rows) != plan.prompts:
        return ["has another number of prompts than its plan"]
    if shard.digest != plan.digest:
        return ["has other prompts than were planned"]
    into.append(shard)
    return []
