"""The frozen prompts: an output's own copy of its prompt set, cut into shards.

``prompts/part-*.parquet`` holds a row group a shard, at most 1,000 shards a file. An output folder
is therefore complete in itself, and later changes of the source do no harm. Shards that are
frozen stay as they are: more prompts of the same set join as further shards.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.output import layout, parquet
from tgate_batch.output.ledger import Ledger
from tgate_batch.prompts.read import count, read, shard_sizes, shards, unique
from tgate_batch.prompts.source import Source
from tgate_batch.records import Prompt, Shard
from tgate_batch.storage import Folder

SHARDS_A_FILE = 1000
_READERS = 16  # files whose footers are read at once: a store answers each after a while
_PLANS_KEY = "tgate_batch.shards"
# A shard is a small row group: this is half of what zstd takes, and dictionaries save nothing.
_COMPRESSION = dict.fromkeys(("shard", "id", "text", "category"), "lz4") | {"image": "none"}
SCHEMA = pa.schema(  # the shard, then a prompt's fields
    [
        ("shard", pa.int32()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("category", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard without its prompts: how many there are, their digest, and where they are frozen."""

    index: int
    prompts: int
    digest: str
    part: int  # the file's number
    group: int  # the row group in it


class StalePrompts(UserError):
    """The folder holds pictures of other prompts."""


@dataclass(frozen=True)
class Plan:
    """The shards of a run. ``source``: what they were read from, as the ledger keeps it."""

    shards: list[ShardPlan]
    frozen: int  # how many of them stand in the folder
    source: layout.Settings


def plan(
    folder: Folder, spec: Prompts, ledger: Ledger | None, by: str | None = None, batch: int = 1
) -> Plan:
    """The shards that the folder holds, then those that join. Writes nothing.

    Those that join are cut in whole batches of ``batch`` prompts, as far as their size allows.

    An unchanged source is not read again. Without a ledger, what the folder holds does not count.
    Where the folder's prompts have the categories of another column than ``by``, they are to be
    frozen again: the shards stay. Raises UserError as reading prompts does, and StalePrompts
    where the folder holds others.
    """
    held: list[ShardPlan] = []
    if ledger is not None and not ledger.is_cleared(layout.PROMPTS):
        held = frozen(folder)
    source: layout.Settings = {
        "source": _sha256(spec.path),
        **spec.model_dump(exclude={"path", "shard_size"}),
    }
    if by is not None:
        source["by"] = by
    known = source | {"shards": len(held), "pictures": False}
    if held and ledger is not None and layout.PROMPTS in ledger and ledger[layout.PROMPTS] == known:
        return Plan(held, len(held), known)
    first_part = held[-1].part + 1 if held else 0
    found, pictures = [], False
    left = count(spec) - sum(shard.prompts for shard in held)
    joining_sizes = shard_sizes(left, spec.shard_size, batch)
    sizes = itertools.chain(
        (shard.prompts for shard in held), joining_sizes, itertools.repeat(spec.shard_size)
    )
    for shard in shards(unique(read(spec, by), spec.path), sizes):
        joining = shard.index - len(held)
        if joining < 0 and held[shard.index].digest != shard.digest:
            raise StalePrompts(_other_prompts(folder, spec, shard.index))
        place = (first_part + joining // SHARDS_A_FILE, joining % SHARDS_A_FILE)
        pictures = pictures or any(prompt.image for prompt in shard.prompts)
        found.append(
            held[shard.index]
            if joining < 0
            else ShardPlan(shard.index, len(shard.prompts), shard.digest, *place)
        )
    if len(found) < len(held):
        raise StalePrompts(_other_prompts(folder, spec, len(found)))
    kept = len(held) if ledger is None or frozen_by(ledger) == by else 0
    return Plan(found, kept, source | {"shards": len(found), "pictures": pictures})


def frozen_by(ledger: Ledger) -> str | None:
    """The column that the frozen prompts have the categories of."""
    found = ledger[layout.PROMPTS].get("by") if layout.PROMPTS in ledger else None
    return None if found is None else str(found)


def freeze(folder: Folder, spec: Prompts, wanted: Plan, by: str | None = None) -> None:
    """Writes the shards that join; raises UserError where the source has changed since the plan."""
    if wanted.frozen == len(wanted.shards):
        return
    cut = shards(read(spec, by), (shard.prompts for shard in wanted.shards))
    joining = itertools.islice(cut, wanted.frozen, None)
    for part, plans in itertools.groupby(
        wanted.shards[wanted.frozen :], key=lambda shard: shard.part
    ):
        _write_part(folder, spec, part, list(plans), joining)


def _write_part(
    folder: Folder, spec: Prompts, part: int, plans: list[ShardPlan], source: Iterator[Shard]
) -> None:
    footer = {_PLANS_KEY: json.dumps([astuple(shard) for shard in plans])}
    with (
        folder.create(layout.prompts_part(part)) as stream,
        pq.ParquetWriter(
            stream,
            SCHEMA.with_metadata(footer),
            compression=_COMPRESSION,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        for wanted in plans:
            shard = next(source, None)
            if shard is None or shard.digest != wanted.digest:
                raise UserError(
                    f"prompts file {spec.path} changed while it was read; start again when it is "
                    "complete"
                )
            columns = [[shard.index] * wanted.prompts, *map(list, zip(*shard.prompts, strict=True))]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


def frozen(folder: Folder) -> list[ShardPlan]:
    """The shards that the folder holds. Raises UserError where a file of theirs is damaged."""
    names = folder.names(layout.PROMPTS, ".parquet")
    with ThreadPoolExecutor(_READERS) as readers:
        parts = readers.map(lambda name: _plans_of(folder, name), names)
        found = [shard for part in parts for shard in part]
    return sorted(found, key=lambda shard: shard.index)


def _plans_of(folder: Folder, name: str) -> list[ShardPlan]:
    try:
        with parquet.opened(folder, name) as file:
            return plans(file)
    except (*parquet.DAMAGE, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"output {folder}: {name} is damaged ({reason}); restore it, or give another output"
        ) from None


def plans(file: pq.ParquetFile) -> list[ShardPlan]:
    """The shards in an open file of frozen prompts.

    Raises KeyError, ValueError or TypeError where its footer does not say them.
    """
    return [ShardPlan(*row) for row in json.loads(parquet.footer(file)[_PLANS_KEY])]


def load_shard(folder: Folder, shard: ShardPlan) -> Shard:
    """A shard with its prompts. Raises as ``parquet.opened`` does."""
    with parquet.opened(folder, layout.prompts_part(shard.part)) as file:
        rows = file.read_row_group(shard.group, columns=["id", "text", "image"]).to_pylist()
    found = Shard(shard.index, tuple(Prompt(row["id"], row["text"], row["image"]) for row in rows))
    if found.digest != shard.digest:
        raise parquet.OtherFile(f"the frozen prompts of shard {shard.index} are not those planned")
    return found


def categories(folder: Folder, shard: ShardPlan) -> list[str | None]:
    """The category of each prompt of a shard. Raises as ``parquet.opened`` does."""
    with parquet.opened(folder, layout.prompts_part(shard.part)) as file:
        return file.read_row_group(shard.group, columns=["category"])["category"].to_pylist()


def texts(folder: Folder, chosen: Iterable[ShardPlan]) -> Iterator[str]:
    """The prompts' texts of these shards, in order."""
    for shard in chosen:
        yield from (prompt.text for prompt in load_shard(folder, shard).prompts)


def _sha256(path: str) -> str | None:
    """Of the source's bytes; None where it cannot be read, which reading it then tells."""
    try:
        source = Source.of(path)
        if source.fault() is not None:
            return None
        with source.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, UserError):
        return None


def _other_prompts(folder: Folder, spec: Prompts, index: int) -> str:
    return (
        f"output {folder} holds other prompts than {spec.path} gives (they differ first in shard "
        f"{index}); its pictures would not match: give another output, the prompts it was begun "
        "with, or --replace-stale to render all of it again"
    )
