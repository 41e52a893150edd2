"""The frozen prompts: an output's own copy of its prompt set, cut into shards of one kind of row.

``prompts/part-*.parquet`` holds a row group a shard, at most 1,000 shards a file. An output folder
is therefore complete in itself, and later changes of the source do no harm. Shards that are
frozen stay as they are: more prompts of the same set join as further shards.
"""

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError, one_line
from tgate_batch.output import layout, parquet, seal, shapes
from tgate_batch.output.provenance import Provenance
from tgate_batch.output.seal import TableSeal
from tgate_batch.prompts import globbing
from tgate_batch.prompts.batching import cut_shards, in_order
from tgate_batch.prompts.reader import count, read_prompts, unique
from tgate_batch.prompts.webui import telling
from tgate_batch.records import AS_OTHERS, AS_THE_RUN, BatchKey, Prompt, RowSettings, Shard
from tgate_batch.storage import Folder

SHARDS_A_FILE = 1000
_READERS = 16  # files whose footers are read at once: a store answers each after a while
_PLANS_KEY = "tgate_batch.shards"
# A shard is a small row group: this is half of what zstd takes, and dictionaries save nothing.
SCHEMA = pa.schema(  # the shard, then a prompt's fields
    [
        ("shard", pa.int32()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("category", pa.string()),
    ]
)
OWN_SCHEMA = pa.schema(  # of a set whose rows say more than that
    [
        *SCHEMA,
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("guidance_scale", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("steps", pa.int32()),
        ("strength", pa.float64()),
        ("place", pa.int64()),
        ("kept", pa.string()),
    ]
)
OWN_BEFORE_STRENGTH = OWN_SCHEMA.remove(OWN_SCHEMA.get_field_index("strength"))
_COMPRESSION = dict.fromkeys(OWN_SCHEMA.names, "lz4") | {"image": "none"}


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard without its prompts: how many there are, their digest, and where they are frozen.

    ``first``: the place of its first row in the set.
    """

    index: int
    prompts: int
    digest: str
    part: int  # the file's number
    group: int  # the row group in it
    batch_key: BatchKey = AS_OTHERS
    first: int = 0


class StalePrompts(UserError):
    """The folder holds pictures of other prompts."""


@dataclass(frozen=True)
class PromptPlan:
    """The shards of a run. ``source``: what they were read from, as the ledger keeps it."""

    shards: list[ShardPlan]
    frozen: int  # how many of them stand in the folder
    source: layout.Settings


def plan_shards(
    folder: Folder,
    spec: Prompts,
    ledger: Provenance | None,
    by: str | None = None,
    batch: int = 1,
    apart: bool = False,
    given: Collection[str] = (),
) -> PromptPlan:
    """The shards that the folder holds, then those that join. Writes nothing.

    Those that join are cut in whole batches of ``batch`` prompts, as far as their size allows.
    ``apart``: rows of differing guidance share no shard; where the folder holds shards, it is as
    they were cut. ``given``: the settings that the config gives, as ``read_prompts`` has them.

    An unchanged source is not read again. Without a ledger, what the folder holds does not count.
    Where the folder's prompts have the categories of another column than ``by``, they are to be
    frozen again: the shards stay. Raises UserError as reading prompts does, and StalePrompts
    where the folder holds others.
    """
    held: list[ShardPlan] = []
    if ledger is not None and not ledger.is_cleared(layout.PROMPTS):
        held = stored_shards(folder)
        if held:  # without any they are frozen again
            check_whole(folder, held, ledger)
    before = ledger[layout.PROMPTS] if ledger is not None and layout.PROMPTS in ledger else {}
    if held:
        apart = bool(before.get("apart", apart))
    source = _settings(spec, by) | {"apart": apart}
    known = source | {"shards": len(held), "pictures": False, "own": bool(before.get("own"))}
    if held and before == known:
        return PromptPlan(held, len(held), known)
    first_part = held[-1].part + 1 if held else 0
    found: dict[int, ShardPlan] = {}
    pictures, overrides = False, spec.shuffle is not None  # rows then do not follow one another
    left = count(spec) - sum(shard.prompts for shard in held)
    prompts = telling(unique(read_prompts(spec, by, given), globbing.name_paths(spec)))
    planned = [(shard.batch_key, shard.prompts) for shard in held]
    for kind, shard in cut_shards(prompts, planned, left, spec.shard_size, batch, apart):
        joining = shard.index - len(held)
        if joining < 0 and held[shard.index].digest != shard.digest:
            raise StalePrompts(_other_prompts(folder, spec, shard.index, before, source))
        place = (first_part + joining // SHARDS_A_FILE, joining % SHARDS_A_FILE)
        pictures = pictures or any(prompt.image for prompt in shard.prompts)
        overrides = overrides or any(
            one.overrides is not AS_THE_RUN or one.extra_columns for one in shard.prompts
        )
        found[shard.index] = (
            held[shard.index]
            if joining < 0
            else ShardPlan(
                shard.index,
                len(shard.prompts),
                shard.digest,
                *place,
                kind,
                shard.prompts[0].source_row,
            )
        )
    if missing := [index for index in range(len(held)) if index not in found]:
        raise StalePrompts(_other_prompts(folder, spec, missing[0], before, source))
    extra_columns = len(held) if ledger is None or category_column(ledger) == by else 0
    shards = [found[index] for index in sorted(found)]
    return PromptPlan(
        shards,
        extra_columns,
        source | {"shards": len(shards), "pictures": pictures, "own": overrides},
    )


def _settings(spec: Prompts, by: str | None) -> layout.Settings:
    """What decides the frozen prompts, flat."""
    found: layout.Settings = {"source": _sha256(spec)}
    without = {"path", "shard_size", "image_roots"}
    if spec.repeated_ids == "refuse":  # as older ledgers have it
        without.add("repeated_ids")
    if spec.shuffle is None:
        without.add("shuffle")
    for key, value in spec.model_dump(exclude=without).items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": part for name, part in value.items()}
        else:
            found[key] = ", ".join(value) if isinstance(value, tuple) else value
    return found if by is None else found | {"by": by}


def category_column(ledger: Provenance) -> str | None:
    """The column that the frozen prompts have the categories of."""
    found = ledger[layout.PROMPTS].get("by") if layout.PROMPTS in ledger else None
    return None if found is None else str(found)


def store_prompts(folder: Folder, spec: Prompts, wanted: PromptPlan, by: str | None = None) -> None:
    """Writes the shards that join; raises UserError where the source has changed since the plan."""
    if wanted.frozen == len(wanted.shards):
        return
    planned = [(shard.batch_key, shard.prompts) for shard in wanted.shards]
    again = cut_shards(
        read_prompts(spec, by), planned, 0, spec.shard_size, 1, bool(wanted.source["apart"])
    )
    joining = in_order(again, wanted.frozen)
    for part, plans in itertools.groupby(
        wanted.shards[wanted.frozen :], key=lambda shard: shard.part
    ):
        schema = OWN_SCHEMA if wanted.source["own"] else SCHEMA
        _write_part(folder, spec, part, list(plans), joining, schema)


def _write_part(
    folder: Folder,
    spec: Prompts,
    part: int,
    plans: list[ShardPlan],
    source: Iterator[Shard],
    schema: pa.Schema,
) -> None:
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
        for wanted in plans:
            shard = next(source, None)
            if shard is None or shard.digest != wanted.digest:
                raise UserError(
                    f"prompts file {globbing.name_paths(spec)} changed while it was read. Fix: "
                    "run the same command again when the file is complete"
                )
            cells = len(schema) - 1
            rows = [(shard.index, *_cells(prompt)[:cells]) for prompt in shard.prompts]
            columns = [list(column) for column in zip(*rows, strict=True)]
            table = pa.Table.from_arrays(columns, schema=schema)
            sealed.add(table)
            writer.write_table(table)
        writer.add_key_value_metadata({seal.FOOTER: sealed.value()})


def _cells(prompt: Prompt) -> tuple:
    """A prompt as a frozen row has it, but for the shard's number."""
    text = (prompt.id, prompt.text, prompt.image, prompt.category)
    return (*text, *prompt.overrides, prompt.source_row, prompt.extra_columns)


def stored_shards(folder: Folder) -> list[ShardPlan]:
    """The shards that the folder holds. Raises UserError where a file of theirs is damaged."""
    names = folder.names(layout.PROMPTS, ".parquet")
    with ThreadPoolExecutor(_READERS) as readers:
        parts = readers.map(lambda name: _plans_of(folder, name), names)
        found = [shard for part in parts for shard in part]
    return sorted(found, key=lambda shard: shard.index)


def _plans_of(folder: Folder, name: str) -> list[ShardPlan]:
    try:
        with parquet.open_table(folder, name) as file:
            return plans(file)
    except (*parquet.DAMAGE, KeyError, ValueError, TypeError) as error:
        raise _damaged(folder, name, error) from None


def plans(file: pq.ParquetFile) -> list[ShardPlan]:
    """The shards in an open file of frozen prompts.

    Raises KeyError, ValueError or TypeError where its footer does not say them.
    """
    rows: list[Any] = shapes.Plans.validate_json(parquet.footer(file)[_PLANS_KEY], strict=True)
    return [
        ShardPlan(index, prompts, digest, part, group, BatchKey(*kind), first)
        for index, prompts, digest, part, group, kind, first in rows
    ]


def _damaged(folder: Folder, name: str, error: object) -> UserError:
    """The error of a part that is not as it was written, or that is not there."""
    why = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({one_line(error)})"
    return UserError(f"output {folder}: {name} is {why}. Fix: {repair_of(folder)}")


def repair_of(folder: Folder) -> str:
    """How frozen prompts that are damaged or missing come back."""
    return (
        f"restore it from a copy, or run tgate-batch verify {folder} --repair, which writes it "
        "again from the prompt file"
    )


def check_whole(folder: Folder, held: Sequence[ShardPlan], ledger: Provenance) -> None:
    """Raises UserError, naming the first missing part, where the ledger promises more shards."""
    missing = missing_parts(held, ledger)
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(
            f"output {folder}: {missing[0]}{more} is missing: of {_promised(ledger):,} shards of "
            f"prompts {len(held):,} are here, as in a folder that was copied in part. Fix: copy "
            f"the missing files too, or {repair_of(folder)}"
        )


def missing_parts(held: Sequence[ShardPlan], ledger: Provenance) -> list[str]:
    """The files of shards that the ledger promises; of those after the last, the first alone."""
    indices, parts = {shard.index for shard in held}, {shard.part for shard in held}
    wanted = range(max(_promised(ledger), len(held)))
    if indices == set(wanted):
        return []
    gaps = [part for part in range(max(parts, default=-1)) if part not in parts]
    if max(indices, default=-1) < len(wanted) - 1 or not gaps:
        gaps.append(max(parts, default=-1) + 1)
    return [layout.prompts_part(part) for part in gaps]


def _promised(ledger: Provenance) -> int:
    """How many shards the ledger says are frozen; 0 where it does not."""
    found = ledger[layout.PROMPTS].get("shards") if layout.PROMPTS in ledger else 0
    return found if isinstance(found, int) else 0


def rewrite_parts(
    folder: Folder, spec: Prompts, ledger: Provenance, batch: int, names: Collection[str]
) -> None:
    """Writes parts that are damaged or missing again, from the set that they were frozen from.

    ``names``: those parts; ``batch`` as in ``plan``. Raises UserError where the set is not there
    or another one, or its shards cannot be told from it.
    """
    if layout.PROMPTS not in ledger:
        raise UserError(f"{layout.LEDGER} does not say what the prompts were frozen from")
    before = ledger[layout.PROMPTS]
    by = category_column(ledger)
    now = _settings(spec, by)
    if now["source"] is None:
        raise UserError(
            f"the prompt file {globbing.name_paths(spec)} cannot be read. Fix: put it back, then "
            "run the same command again"
        )
    if changed := [key for key in now if before.get(key) != now[key]]:
        raise UserError(
            f"the prompt file {globbing.name_paths(spec)} is not the one that was frozen (another "
            f"{', '.join(changed)}; its sha256 was {before.get('source')}). Fix: put that one "
            "back, then run the same command again"
        )
    cutting = (spec.shard_size, batch, bool(before.get("apart")))
    sound, told = _known(folder, names)
    shards = _planned_again(spec, by, cutting, _promised(ledger), sound, told)
    planned = [(shard.batch_key, shard.prompts) for shard in shards]
    schema = OWN_SCHEMA if before.get("own") else SCHEMA
    for part, plans in itertools.groupby(shards, key=lambda shard: shard.part):
        if layout.prompts_part(part) in names:
            mine = list(plans)
            again = cut_shards(read_prompts(spec, by), planned, 0, *cutting)
            _write_part(folder, spec, part, mine, in_order(again, mine[0].index), schema)


def _known(folder: Folder, names: Collection[str]) -> tuple[list[ShardPlan], list[ShardPlan]]:
    """The plans of the parts that are sound, and those that all parts still tell.

    ``names``: the parts that are not.
    """
    sound: list[ShardPlan] = []
    told: list[ShardPlan] = []
    for name in folder.names(layout.PROMPTS, ".parquet"):
        place = layout.role_of(name)
        try:
            found = _plans_of(folder, name) if place is not None else []
        except UserError:
            continue
        if place is not None and name in names:
            told += [
                replace(shard, part=place.number, group=group) for group, shard in enumerate(found)
            ]
        else:
            sound += found
    return sound, sound + told


def _planned_again(
    spec: Prompts,
    by: str | None,
    cutting: tuple[int, int, bool],
    promised: int,
    sound: list[ShardPlan],
    told: list[ShardPlan],
) -> list[ShardPlan]:
    """The plans of all shards: of the sizes that the parts tell, or cut as a first run cuts them.

    Raises UserError where neither gives the shards that are ``sound``.
    """
    by_index = {shard.index: shard for shard in told}
    whole = sorted(by_index) == list(range(promised))
    first_cuts: list[tuple[list[ShardPlan], int]] = [([], count(spec))]
    if whole:
        first_cuts.insert(0, ([by_index[index] for index in range(promised)], 0))
    for plans, joining in first_cuts:
        planned = [(shard.batch_key, shard.prompts) for shard in plans]
        found: dict[int, ShardPlan] = {}
        for kind, shard in cut_shards(read_prompts(spec, by), planned, joining, *cutting):
            place = divmod(shard.index, SHARDS_A_FILE)
            if shard.index < len(plans):
                place = plans[shard.index].part, plans[shard.index].group
            first = shard.prompts[0].source_row
            found[shard.index] = ShardPlan(
                shard.index, len(shard.prompts), shard.digest, *place, kind, first
            )
        if len(found) == promised and all(found.get(shard.index) == shard for shard in sound):
            return [found[index] for index in sorted(found)]
    raise UserError(
        "the set was frozen in several steps, and what is left does not tell its shards. Fix: "
        "restore the files from a copy"
    )


def _table(folder: Folder, shard: ShardPlan, columns: list[str] | None = None) -> pa.Table:
    """A shard's frozen rows. Raises UserError where its part is damaged or missing."""
    name = layout.prompts_part(shard.part)
    try:
        with parquet.open_table(folder, name) as file:
            return file.read_row_group(shard.group, columns=columns)
    except parquet.DAMAGE as error:
        raise _damaged(folder, name, error) from None


def load_shard(folder: Folder, shard: ShardPlan) -> Shard:
    """A shard with its prompts. Raises UserError where its part is damaged or missing."""
    found = Shard(shard.index, prompts_of(shard, _table(folder, shard).to_pylist()))
    if found.digest != shard.digest:
        why = f"the prompts of shard {shard.index} are not those planned"
        raise _damaged(folder, layout.prompts_part(shard.part), why)
    return found


def prompts_of(shard: ShardPlan, rows: list[dict[str, Any]]) -> tuple[Prompt, ...]:
    """The prompts of a shard's frozen rows."""
    return tuple(
        Prompt(
            row["id"],
            row["text"],
            row["image"],
            row["category"],
            RowSettings(*map(row.get, RowSettings._fields)),
            row.get("place", shard.first + number),  # without settings rows follow one another
            row.get("kept"),
        )
        for number, row in enumerate(rows)
    )


def categories(folder: Folder, shard: ShardPlan) -> list[str | None]:
    """The category of each prompt of a shard. Raises as ``load_shard`` does."""
    return _table(folder, shard, ["category"])["category"].to_pylist()


def texts(folder: Folder, chosen: Iterable[ShardPlan]) -> Iterator[str]:
    """The prompts' texts of these shards, in order."""
    for shard in chosen:
        yield from (prompt.text for prompt in load_shard(folder, shard).prompts)


def _sha256(spec: Prompts) -> str | None:
    """Of the source's bytes; None where they cannot be read, which reading then tells."""
    try:
        files = globbing.sources(spec)
        digests = []
        for source in files:
            if source.fault() is not None:
                return None
            with source.stored() as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    except (OSError, UserError):
        return None
    return digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _other_prompts(
    folder: Folder,
    spec: Prompts,
    index: int,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> str:
    changed = [f"prompts.{key}" for key in now if key != "source" and before.get(key) != now[key]]
    return (
        f"output {folder} holds other prompts than {globbing.name_paths(spec)} gives (they differ "
        f"first in shard {index}{_also(changed)}); its images would not match. Fix: give another "
        "output or the prompts it was begun with, or add --replace-stale to render all of it again"
    )


def _also(changed: list[str]) -> str:
    """Settings that may be why; none where there was no ledger."""
    return f"; changed: {', '.join(changed)}" if changed else ""
