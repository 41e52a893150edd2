"""Whether an output's frozen prompts are those that its shards were planned with."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from tgate_batch.execute.verify.findings import guarded, in_words
from tgate_batch.output import frozen, layout, parquet
from tgate_batch.output.frozen import ShardPlan
from tgate_batch.records import Shard
from tgate_batch.storage import Folder

ADVICE = (
    "restore it from a copy, or delete all of prompts and run tgate-batch render with the prompt "
    "file it was begun with"
)


class Parts:
    """The files of frozen prompts, read once.

    ``reasons``: what is wrong with each file. ``lost``: whether some shards' plans are not known.
    """

    def __init__(self, folder: Folder, present: frozenset[str]):
        self._folder = folder
        mine = [name for name in present if name.startswith(f"{layout.PROMPTS}/")]
        self._names = sorted(name for name in mine if layout.place(name) is not None)
        self._ids: set[str] = set()
        self._twice = 0
        self._indices: list[int] = []
        self.reasons: dict[str, list[str]] = {}
        self.lost = False

    def shards(self) -> Iterator[tuple[ShardPlan, Shard | None]]:
        """Every shard whose plan is known, with its prompts; None where those are damaged."""
        for name in self._names:
            reasons = self.reasons[name] = []
            try:
                yield from self._part(name, reasons)
            except Exception as error:  # Arrow's have no common parent
                reasons.append(f"cannot be read: {in_words(error)}")
                self.lost = True

    def faults(self, entry: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[list[str], bool]:
        """What is wrong with all of them together, and whether a run makes it good.

        ``entry`` is the ledger's of the prompts, ``run`` the content of the run's file.
        """
        held, planned = len(self._indices), _count(entry)
        reasons = [f"{self._twice:,} ids stand twice; {ADVICE}"] if self._twice else []
        if not self.lost and (
            held < planned or sorted(self._indices) != list(range(len(self._indices)))
        ):
            self.lost = True
            reasons.append(f"of {planned} shards {held} are here; {ADVICE}")
        wanted = _count(run)
        if not reasons and not self.lost and (held < wanted or not held):
            return [f"of {wanted} shards {held} are frozen"], True
        return reasons, False

    def _part(self, name: str, reasons: list[str]) -> Iterator[tuple[ShardPlan, Shard | None]]:
        with parquet.opened(self._folder, name) as file:
            plans = frozen.plans(file)
            self._indices += [plan.index for plan in plans]
            unusual = _of_footer(file, name, plans)
            reasons += unusual
            for plan in plans:
                found: list[Shard] = []
                if not unusual:
                    why = guarded(partial(_of_shard, file, plan, found))
                    reasons += [f"shard {plan.index} {reason}" for reason in why]
                    if not why:
                        self._count(found[0])
                yield plan, found[0] if found else None

    def _count(self, shard: Shard) -> None:
        for prompt in shard.prompts:
            self._twice += prompt.id in self._ids
            self._ids.add(prompt.id)


def _count(about: Mapping[str, Any]) -> int:
    """The number of shards that a file speaks of; 0 where it does not."""
    found = about.get("shards")
    return found if isinstance(found, int) else 0


def _of_footer(file: pq.ParquetFile, name: str, plans: list[ShardPlan]) -> list[str]:
    place = layout.place(name)
    groups = [(place and place.number, group) for group in range(file.num_row_groups)]
    if [(plan.part, plan.group) for plan in plans] != groups:
        return ["its plans are not those of its row groups"]
    known = frozen.SCHEMA, frozen.OWN_SCHEMA, frozen.OWN_BEFORE_STRENGTH
    if not any(map(file.schema_arrow.equals, known)):
        return ["it has other columns than frozen prompts have"]
    return []


def _of_shard(file: pq.ParquetFile, plan: ShardPlan, found: list[Shard]) -> list[str]:
    """Reads a shard into ``found`` where nothing is wrong with it."""
    rows = file.read_row_group(plan.group).to_pylist()
    shard = Shard(plan.index, frozen.prompts_of(plan, rows))
    if {row["shard"] for row in rows} != {plan.index} or len(rows) != plan.prompts:
        return ["does not have the prompts that its plan counts"]
    if shard.digest != plan.digest:
        return ["has other prompts than were planned"]
    found.append(shard)
    return []
