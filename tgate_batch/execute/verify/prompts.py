"""Whether an output's frozen prompts are those that its shards were planned with."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from tgate_batch.execute.verify.findings import (
    LOST,
    MISSING,
    PROMPTS,
    Fault,
    describe_error,
    guarded,
)
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.provenance import Provenance
from tgate_batch.output.seal import TableSeal
from tgate_batch.records import Shard
from tgate_batch.storage import Folder

ADVICE = "--repair writes it again from the prompt file, or restore it from a copy"


class Parts:
    """The files of frozen prompts, read once.

    ``reasons``: what is wrong with each file. ``lost``: whether some shards' plans are not known.
    """

    def __init__(self, folder: Folder, present: frozenset[str]):
        self._folder = folder
        mine = [name for name in present if name.startswith(f"{layout.PROMPTS}/")]
        self._names = sorted(name for name in mine if layout.role_of(name) is not None)
        self._ids: set[str] = set()
        self._twice = 0
        self._plans: list[ShardPlan] = []
        self.reasons: dict[str, list[str]] = {}
        self.lost = False

    def shards(self) -> Iterator[tuple[ShardPlan, Shard | None]]:
        """Every shard whose plan is known, with its prompts; None where those are damaged."""
        for name in self._names:
            reasons = self.reasons[name] = []
            try:
                yield from self._part(name, reasons)
            except Exception as error:  # Arrow's have no common parent
                reasons.append(f"cannot be read: {describe_error(error)}")
                self.lost = True

    def faults(self, ledger: Provenance, run: Mapping[str, Any]) -> Iterator[Fault]:
        """What is wrong with all of them together; ``run`` is the content of the run's file."""
        held = len(self._plans)
        if self._twice:
            yield Fault(PROMPTS, LOST, layout.PROMPTS, f"{self._twice:,} ids stand twice; {ADVICE}")
        if not self.lost:
            missing = prompt_store.missing_parts(self._plans, ledger)
            self.lost = bool(missing)
            for name in missing:
                why = f"it is missing: of {_count(run):,} shards {held:,} are here; {ADVICE}"
                yield Fault(PROMPTS, LOST, name, why)
        wanted = _count(run)
        if not self._twice and not self.lost and (held < wanted or not held):
            why = f"of {wanted:,} shards {held:,} are frozen"
            yield Fault(PROMPTS, MISSING, layout.PROMPTS, why)

    def _part(self, name: str, reasons: list[str]) -> Iterator[tuple[ShardPlan, Shard | None]]:
        with parquet.open_table(self._folder, name) as file:
            plans = prompt_store.plans(file)
            self._plans += plans
            unusual = _of_footer(file, name, plans)
            reasons += unusual
            seal = TableSeal(parquet.footer(file))
            for plan in plans:
                found: list[Shard] = []
                if not unusual:
                    why = guarded(partial(_of_shard, file, plan, found, seal))
                    reasons += [f"shard {plan.index} {reason}" for reason in why]
                    if not why:
                        self._count(found[0])
                yield plan, found[0] if found else None
            if not reasons and seal.is_broken():
                reasons.append("its rows or its footer are not those that its digest was made of")

    def _count(self, shard: Shard) -> None:
        for prompt in shard.prompts:
            self._twice += prompt.id in self._ids
            self._ids.add(prompt.id)


def _count(about: Mapping[str, Any]) -> int:
    """The number of shards that a file speaks of; 0 where it does not."""
    found = about.get("shards")
    return found if isinstance(found, int) else 0


def _of_footer(file: pq.ParquetFile, name: str, plans: list[ShardPlan]) -> list[str]:
    role = layout.role_of(name)
    groups = [(role and role.number, group) for group in range(file.num_row_groups)]
    if [(plan.part, plan.group) for plan in plans] != groups:
        return ["its plans are not those of its row groups"]
    known = prompt_store.SCHEMA, prompt_store.FULL_SCHEMA, prompt_store.FULL_BEFORE_STRENGTH
    if not any(map(file.schema_arrow.equals, known)):
        return ["it has other columns than frozen prompts have"]
    return []


def _of_shard(
    file: pq.ParquetFile, plan: ShardPlan, found: list[Shard], seal: TableSeal
) -> list[str]:
    """Reads a shard into ``found`` where nothing is wrong with it, and into its file's seal."""
    table = file.read_row_group(plan.group)
    seal.add(table)
    rows = table.to_pylist()
    shard = Shard(plan.index, prompt_store.prompts_of(plan, rows))
    if {row["shard"] for row in rows} != {plan.index} or len(rows) != plan.prompts:
        return ["does not have the prompts that its plan counts"]
    if shard.digest != plan.digest:
        return ["has other prompts than were planned"]
    found.append(shard)
    return []
