"""Plans the shards of a prompt set, and stores those that an output does not have yet.

Stored shards never change: additional prompts of the same set become additional shards.
"""

import hashlib
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.output import layout, prompt_store
from tgate_batch.output.prompt_store import (
    FULL_SCHEMA,
    SCHEMA,
    SHARDS_A_FILE,
    ShardPlan,
    category_column,
    promised_shards,
    write_part,
)
from tgate_batch.output.provenance import Provenance
from tgate_batch.prompts import globbing
from tgate_batch.prompts.batching import cut_shards, in_order
from tgate_batch.prompts.reader import count, read_prompts, unique
from tgate_batch.prompts.webui import warn_of_syntax
from tgate_batch.records import AS_THE_RUN, BatchKey, Shard
from tgate_batch.storage import Folder


class StalePrompts(UserError):
    """The folder has images of other prompts."""


@dataclass(frozen=True)
class PromptPlan:
    """The shards of a run. ``source``: the ledger's entry about the set that they come from."""

    shards: list[ShardPlan]
    stored: int  # how many of them the folder has
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
    """Returns the shards that the folder has, then additional ones. Writes nothing.

    Additional shards are whole batches of ``batch`` prompts, if their size allows it. ``apart``:
    rows with different guidance scales share no shard; stored shards override it. ``given``: the
    settings of the config, as in ``read_prompts``.

    An unchanged source is not read again. Without a ledger, stored shards are ignored. If their
    categories come from another column than ``by``, all shards are stored again, unchanged. Raises
    UserError for invalid prompts, and StalePrompts if the folder has other prompts.
    """
    stored: list[ShardPlan] = []
    if ledger is not None and not ledger.is_cleared(layout.PROMPTS):
        stored = prompt_store.stored_shards(folder)
        if stored:  # without any, all are stored again
            prompt_store.check_whole(folder, stored, ledger)
    before = ledger[layout.PROMPTS] if ledger is not None and layout.PROMPTS in ledger else {}
    if stored:
        apart = bool(before.get("apart", apart))
    source = _settings(spec, by) | {"apart": apart}
    unchanged = source | {
        "shards": len(stored),
        "pictures": False,
        "own": bool(before.get("own")),
    }
    if stored and before == unchanged:
        return PromptPlan(stored, len(stored), unchanged)
    first_part = stored[-1].part + 1 if stored else 0
    shards: dict[int, ShardPlan] = {}
    images, overrides = False, spec.shuffle is not None  # shuffled rows are not consecutive
    left = count(spec) - sum(shard.prompts for shard in stored)
    prompts = warn_of_syntax(unique(read_prompts(spec, by, given), globbing.name_paths(spec)))
    planned = [(shard.batch_key, shard.prompts) for shard in stored]
    for key, shard in cut_shards(prompts, planned, left, spec.shard_size, batch, apart):
        new = shard.index - len(stored)
        if new < 0 and stored[shard.index].digest != shard.digest:
            raise StalePrompts(_other_prompts(folder, spec, shard.index, before, source))
        images = images or any(prompt.image for prompt in shard.prompts)
        overrides = overrides or any(
            one.overrides is not AS_THE_RUN or one.extra_columns for one in shard.prompts
        )
        part, group = divmod(max(new, 0), SHARDS_A_FILE)
        shards[shard.index] = (
            stored[shard.index] if new < 0 else _plan(key, shard, first_part + part, group)
        )
    if missing := [index for index in range(len(stored)) if index not in shards]:
        raise StalePrompts(_other_prompts(folder, spec, missing[0], before, source))
    usable = len(stored) if ledger is None or category_column(ledger) == by else 0
    source |= {"shards": len(shards), "pictures": images, "own": overrides}
    return PromptPlan([shards[index] for index in sorted(shards)], usable, source)


def _plan(key: BatchKey, shard: Shard, part: int, group: int) -> ShardPlan:
    first = shard.prompts[0].source_row
    return ShardPlan(shard.index, len(shard.prompts), shard.digest, part, group, key, first)


def _settings(spec: Prompts, by: str | None) -> layout.Settings:
    """Returns everything that decides the stored prompts, flat."""
    settings: layout.Settings = {"source": _sha256(spec)}
    without = {"path", "shard_size", "image_roots"}
    if spec.repeated_ids == "refuse":  # older ledgers have no such entry
        without.add("repeated_ids")
    if spec.shuffle is None:
        without.add("shuffle")
    for key, value in spec.model_dump(exclude=without).items():
        if isinstance(value, dict):
            settings |= {f"{key}.{name}": part for name, part in value.items()}
        else:
            settings[key] = ", ".join(value) if isinstance(value, tuple) else value
    return settings if by is None else settings | {"by": by}


def _sha256(spec: Prompts) -> str | None:
    """Returns the digest of the source's files; None if they cannot be read."""
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
    also = f"; changed: {', '.join(changed)}" if changed else ""  # empty without a ledger
    return (
        f"output {folder} has other prompts than {globbing.name_paths(spec)} gives (they differ "
        f"first in shard {index}{also}); its images would not match. Fix: give another output or "
        "the original prompts, or add --replace-stale to render all of it again"
    )


def store_prompts(folder: Folder, spec: Prompts, plan: PromptPlan, by: str | None = None) -> None:
    """Writes the additional shards; raises UserError if the source changed since the plan."""
    planned = [(shard.batch_key, shard.prompts) for shard in plan.shards]
    if plan.stored == len(planned):
        return
    shards = cut_shards(
        read_prompts(spec, by), planned, 0, spec.shard_size, 1, bool(plan.source["apart"])
    )
    new = in_order(shards, plan.stored)
    schema = FULL_SCHEMA if plan.source["own"] else SCHEMA
    for part, plans in itertools.groupby(plan.shards[plan.stored :], key=lambda shard: shard.part):
        write_part(folder, globbing.name_paths(spec), part, list(plans), new, schema)


def rewrite_parts(
    folder: Folder, spec: Prompts, ledger: Provenance, batch: int, names: Collection[str]
) -> None:
    """Writes damaged or missing parts again, from the set that they were stored from.

    ``names``: those parts; ``batch`` as in ``plan_shards``. Raises UserError if the set is missing
    or has changed, or if its shards cannot be derived from it.
    """
    if layout.PROMPTS not in ledger:
        raise UserError(f"{layout.LEDGER} does not say what the prompts were stored from")
    before = ledger[layout.PROMPTS]
    by = category_column(ledger)
    now = _settings(spec, by)
    name = globbing.name_paths(spec)
    if now["source"] is None:
        raise UserError(
            f"the prompt file {name} cannot be read. Fix: put it back, then rerun the same command"
        )
    if changed := [key for key in now if before.get(key) != now[key]]:
        raise UserError(
            f"the prompt file {name} is not the original one (another {', '.join(changed)}; its "
            f"sha256 was {before.get('source')}). Fix: put the original back, then rerun the same "
            "command"
        )
    cutting = (spec.shard_size, batch, bool(before.get("apart")))
    intact, readable = _readable_plans(folder, names)
    shards = _plan_again(spec, by, cutting, promised_shards(ledger), intact, readable)
    planned = [(shard.batch_key, shard.prompts) for shard in shards]
    schema = FULL_SCHEMA if before.get("own") else SCHEMA
    for part, plans in itertools.groupby(shards, key=lambda shard: shard.part):
        if layout.prompts_part(part) in names:
            missing = list(plans)
            again = cut_shards(read_prompts(spec, by), planned, 0, *cutting)
            write_part(folder, name, part, missing, in_order(again, missing[0].index), schema)


def _readable_plans(
    folder: Folder, damaged: Collection[str]
) -> tuple[list[ShardPlan], list[ShardPlan]]:
    """Returns the plans of the intact parts, and those of all parts with a readable footer."""
    intact: list[ShardPlan] = []
    others: list[ShardPlan] = []
    for name in folder.names(layout.PROMPTS, ".parquet"):
        role = layout.role_of(name)
        try:
            plans = prompt_store.plans_of(folder, name) if role is not None else []
        except UserError:
            continue
        if role is not None and name in damaged:
            others += [replace(p, part=role.number, group=group) for group, p in enumerate(plans)]
        else:
            intact += plans
    return intact, intact + others


def _plan_again(
    spec: Prompts,
    by: str | None,
    cutting: tuple[int, int, bool],
    promised: int,
    intact: list[ShardPlan],
    readable: list[ShardPlan],
) -> list[ShardPlan]:
    """Returns the plans of all shards: of the readable sizes, or cut as in a first run.

    Raises UserError if neither reproduces the intact shards.
    """
    by_index = {shard.index: shard for shard in readable}
    first_cuts: list[tuple[list[ShardPlan], int]] = [([], count(spec))]
    if len(by_index) == promised == max(by_index, default=-1) + 1:
        first_cuts.insert(0, ([by_index[index] for index in range(promised)], 0))
    for plans, new in first_cuts:
        planned = [(shard.batch_key, shard.prompts) for shard in plans]
        shards: dict[int, ShardPlan] = {}
        for key, shard in cut_shards(read_prompts(spec, by), planned, new, *cutting):
            part, group = divmod(shard.index, SHARDS_A_FILE)
            if shard.index < len(plans):
                part, group = plans[shard.index].part, plans[shard.index].group
            shards[shard.index] = _plan(key, shard, part, group)
        if len(shards) == promised and all(shards.get(shard.index) == shard for shard in intact):
            return [shards[index] for index in sorted(shards)]
    raise UserError(
        "the set was stored in several steps, and the remaining files do not define its shards. "
        "Fix: restore the files from a copy"
    )
