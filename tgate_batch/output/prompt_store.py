"""The stored prompts: an output's copy of its prompt set, cut into shards of one batch key.

``prompts/part-*.parquet`` has one row group per shard, at most 1,000 shards per file. The output
folder is therefore self-contained, and later changes of the source do not matter.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.errors import UserError, one_line
from tgate_batch.output import layout, parquet, seal, shapes
from tgate_batch.output.provenance import Provenance
from tgate_batch.output.seal import TableSeal
from tgate_batch.records import AS_OTHERS, BatchKey, Prompt, RowSettings, Shard, schema_of
from tgate_batch.storage import Folder, map_concurrently

SHARDS_A_FILE = 1000
_MOST_NAMED = 1000  # missing files in a list
_PLANS_KEY = "tgate_batch.shards"
_PROMPT = "shard:int32 id:string text:string image:binary category:string"
_SETTINGS = (
    "negative_prompt:string seed:int64 guidance_scale:float64 height:int32 width:int32 "
    "steps:int32 strength:float64 place:int64 kept:string"
)
SCHEMA = schema_of(_PROMPT)
FULL_SCHEMA = schema_of(f"{_PROMPT} {_SETTINGS}")  # rows have settings or further columns
FULL_BEFORE_STRENGTH = FULL_SCHEMA.remove(FULL_SCHEMA.get_field_index("strength"))
# A shard is a small row group: lz4 takes half the space of zstd, and dictionaries save nothing.
_COMPRESSION = dict.fromkeys(FULL_SCHEMA.names, "lz4") | {"image": "none"}


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard without its prompts: their number and digest, and where they are stored.

    ``first``: the position of its first row in the set, from 0.
    """

    index: int
    prompts: int
    digest: str
    part: int  # the file's number
    group: int  # the row group in it
    batch_key: BatchKey = AS_OTHERS
    first: int = 0


def write_part(
    folder: Folder,
    source: str,
    part: int,
    plans: list[ShardPlan],
    shards: Iterator[Shard],
    schema: pa.Schema,
) -> None:
    """Writes a file of shards; raises UserError, naming the ``source``, if a digest differs."""
    footer = {_PLANS_KEY: json.dumps([astuple(shard) for shard in plans])}
    sealed = TableSeal(footer)
    with (
        folder.create(layout.prompts_part(part)) as stream,
        pq.ParquetWriter(
            stream,
            schema.with_metadata(footer),
            compression=_COMPRESSION,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        for plan in plans:
            shard = next(shards, None)
            if shard is None or shard.digest != plan.digest:
                raise UserError(
                    f"prompts file {source} changed while it was read. Fix: rerun the same command "
                    "when the file is complete"
                )
            rows = [(shard.index, *_cells(prompt))[: len(schema)] for prompt in shard.prompts]
            columns = [list(column) for column in zip(*rows, strict=True)]
            table = pa.Table.from_arrays(columns, schema=schema)
            sealed.add(table)
            writer.write_table(table)
        writer.add_key_value_metadata({seal.FOOTER: sealed.value()})


def _cells(prompt: Prompt) -> tuple:
    """Returns a prompt's cells in the order of FULL_SCHEMA, without the shard's number."""
    text = (prompt.id, prompt.text, prompt.image, prompt.category)
    return (*text, *prompt.overrides, prompt.source_row, prompt.extra_columns)


def stored_shards(folder: Folder) -> list[ShardPlan]:
    """Returns the folder's shards; raises UserError if one of their files is damaged."""
    names = folder.names(layout.PROMPTS, ".parquet")
    parts = map_concurrently(partial(plans_of, folder, fit=True), names)
    return sorted((shard for part in parts for shard in part), key=lambda shard: shard.index)


def plans_of(folder: Folder, name: str, fit: bool = False) -> list[ShardPlan]:
    """Returns the shards in a file of stored prompts; raises UserError if it is damaged.

    ``fit``: a file whose plans do not match its row groups counts as damaged too.
    """
    try:
        with parquet.open_table(folder, name) as file:
            listed = plans(file)
            if fit and not match_groups(listed, file, name):
                raise ValueError("its plans do not match its row groups")
            return listed
    except (*parquet.DAMAGE, KeyError, ValueError, TypeError) as error:
        raise _damaged(folder, name, error) from None


def plans(file: pq.ParquetFile) -> list[ShardPlan]:
    """Returns the shards in an open file of stored prompts.

    Raises KeyError, ValueError or TypeError if its footer does not list them.
    """
    rows = shapes.plans(parquet.footer(file)[_PLANS_KEY])
    return [
        ShardPlan(index, prompts, digest, part, group, BatchKey(*key), first)
        for index, prompts, digest, part, group, key, first in rows
    ]


def match_groups(listed: Sequence[ShardPlan], file: pq.ParquetFile, name: str) -> bool:
    """True if plans match the row groups of an open file: one each, in order, with its rows."""
    role, about = layout.role_of(name), file.metadata
    groups = [
        (role and role.number, group, about.row_group(group).num_rows)
        for group in range(file.num_row_groups)
    ]
    return [(plan.part, plan.group, plan.prompts) for plan in listed] == groups


def _damaged(folder: Folder, name: str, error: object) -> UserError:
    """Returns the error of a file that is damaged or missing."""
    why = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({one_line(error)})"
    return UserError(f"output {folder}: {name} is {why}. Fix: {repair_of(folder)}")


def repair_of(folder: Folder) -> str:
    """Returns advice on how to restore damaged or missing prompts."""
    return (
        f"restore it from a copy, or run tgate-batch verify {folder} --repair, which writes it "
        "again from the prompt file"
    )


def check_whole(folder: Folder, stored: Sequence[ShardPlan], ledger: Provenance) -> None:
    """Raises UserError, naming the first missing file, if the ledger promises more shards."""
    missing = missing_parts(stored, ledger)
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"output {folder}: {missing[0]}{more} is missing: of {promised_shards(ledger):,} "
            f"shards of prompts {len(stored):,} are here, as in a partly copied folder. Fix: copy "
            f"the missing files too, or {repair_of(folder)}"
        )


def missing_parts(stored: Sequence[ShardPlan], ledger: Provenance) -> list[str]:
    """Returns the missing files of promised shards: at most ``_MOST_NAMED`` and one more.

    Of those after the last file, only the first. The numbers come from the output, so no list of
    their size is built.
    """
    indices, parts = {shard.index for shard in stored}, {shard.part for shard in stored}
    wanted, last = max(promised_shards(ledger), len(stored)), max(indices, default=-1)
    if len(indices) == wanted == last + 1:
        return []
    lacking = (part for part in range(max(parts, default=-1)) if part not in parts)
    gaps = list(itertools.islice(lacking, _MOST_NAMED))
    if last < wanted - 1 or not gaps:
        gaps.append(max(parts, default=-1) + 1)
    return [layout.prompts_part(part) for part in gaps]


def promised_shards(ledger: Provenance) -> int:
    """Returns the number of shards in the ledger's entry; 0 without an entry."""
    shards = ledger[layout.PROMPTS].get("shards") if layout.PROMPTS in ledger else 0
    return shards if isinstance(shards, int) else 0


def category_column(ledger: Provenance) -> str | None:
    """Returns the column of the stored categories; None without categories."""
    column = ledger[layout.PROMPTS].get("by") if layout.PROMPTS in ledger else None
    return None if column is None else str(column)


def _table(folder: Folder, shard: ShardPlan, columns: list[str] | None = None) -> pa.Table:
    """Returns a shard's stored rows; raises UserError if its file is damaged or missing."""
    name = layout.prompts_part(shard.part)
    try:
        with parquet.open_table(folder, name) as file:
            return file.read_row_group(shard.group, columns=columns)
    except parquet.DAMAGE as error:
        raise _damaged(folder, name, error) from None


def load_shard(folder: Folder, plan: ShardPlan) -> Shard:
    """Returns a shard with its prompts; raises UserError if its file is damaged or missing."""
    shard = Shard(plan.index, prompts_of(plan, _table(folder, plan).to_pylist()))
    if shard.digest != plan.digest:
        why = f"the prompts of shard {plan.index} are not those planned"
        raise _damaged(folder, layout.prompts_part(plan.part), why)
    return shard


def prompts_of(shard: ShardPlan, rows: list[dict[str, Any]]) -> tuple[Prompt, ...]:
    """Returns the prompts of a shard's stored rows."""
    return tuple(
        Prompt(
            row["id"],
            row["text"],
            row["image"],
            row["category"],
            RowSettings(*map(row.get, RowSettings._fields)),
            row.get("place", shard.first + number),  # rows without settings are consecutive
            row.get("kept"),
        )
        for number, row in enumerate(rows)
    )


def categories(folder: Folder, shard: ShardPlan) -> list[str | None]:
    """Returns the category of each prompt of a shard; raises as ``load_shard``."""
    return _table(folder, shard, ["category"])["category"].to_pylist()


def texts(folder: Folder, shards: Iterable[ShardPlan]) -> Iterator[str]:
    """Yields the texts of these shards' prompts, in order; raises as ``load_shard``."""
    for shard in shards:
        yield from (prompt.text for prompt in load_shard(folder, shard).prompts)
