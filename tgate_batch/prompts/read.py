"""Reads a prompt set and cuts it into shards.

Everything streams: a prompt set is never held in memory, only its ids (to refuse duplicates).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError, one_line
from tgate_batch.prompts import formats, listing
from tgate_batch.prompts.columns import FileColumns
from tgate_batch.prompts.source import Source
from tgate_batch.records import Prompt, Shard
from tgate_batch.storage import without_credentials

_REPEATS_NAMED = 5


def read(spec: Prompts, by: str | None = None) -> Iterator[Prompt]:
    """Streams the prompts of ``spec``, file after file, after ``offset``, at most ``limit``.

    ``by`` is the column that holds their categories. Raises UserError for a file that is missing,
    empty, not UTF-8 or has no such column, and for a row whose text, id or setting is missing or
    cannot be one. Duplicate ids are left to :func:`unique`.
    """
    columns: FileColumns | None = None
    for place, (source, line, row) in enumerate(_rows(spec), start=spec.offset):
        if columns is None or columns.source is not source:
            columns = FileColumns.choose(spec, by, source, row)
        yield columns.prompt(line, place, row)
    if columns is None:
        _refuse_none(spec)


class Used(NamedTuple):
    """The columns of a set's first file. ``own``: those that say how their row is drawn."""

    files: int
    first: str
    own: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]


def used(spec: Prompts, by: str | None = None) -> Used:
    """Which columns are used, as the first row has them; raises as ``read`` does."""
    files = listing.sources(spec)
    for source, _, row in _rows(spec):
        found = FileColumns.choose(spec, by, source, row)
        names = (tuple(found.own.values()), found.kept, found.unused)
        return Used(len(files), str(files[0]), *(tuple(map(one_line, each)) for each in names))
    _refuse_none(spec)


def _refuse_none(spec: Prompts) -> NoReturn:
    raise UserError(
        f"prompts file {listing.named(spec)} holds no prompts"
        + (f" after the first {spec.offset}" if spec.offset else "")
    )


def _rows(spec: Prompts) -> Iterator[tuple[Source, int, dict[str, Any]]]:
    """The rows that ``spec`` chooses, with their file and where they stand in it."""
    stop = None if spec.limit is None else spec.offset + spec.limit
    every = (
        (source, line, row)
        for source in listing.sources(spec)
        for line, row in formats.rows(source)
    )
    return itertools.islice(every, spec.offset, stop)


def shards(prompts: Iterable[Prompt], sizes: Iterable[int]) -> Iterator[Shard]:
    """Cuts prompts into shards of these sizes, in order; the last one may be smaller."""
    prompts = iter(prompts)
    for index, size in enumerate(sizes):
        part = tuple(itertools.islice(prompts, size))
        if not part:
            return
        yield Shard(index, part)


_PARTS = 640  # of what is left, a shard is one part: some hundred workers then end together
_FEWEST_PARTS = 8  # for sets that only a few workers draw
_SMALLEST = 4  # prompts a shard


def shard_sizes(left: int, largest: int, batch: int) -> Iterator[int]:
    """Sizes that cut ``left`` prompts into shards, ever smaller towards the end.

    The last ones keep many workers busy to the end; they do not depend on how many there are.
    Shards are whole batches of ``batch`` prompts: what is missing in one is drawn all the same.
    """
    whole = left
    while left > 0:
        size = next_size(left, whole, largest, batch)
        yield size
        left -= size


def next_size(left: int, whole: int, largest: int, batch: int) -> int:
    """Prompts of the next shard where ``left`` of ``whole`` are not cut yet."""
    parts = min(_PARTS, max(_FEWEST_PARTS, whole // 16))
    batches = math.ceil(max(_SMALLEST, left / parts) / batch)
    return min(left, largest, batches * batch)


def count(spec: Prompts) -> int:
    """How many prompts ``spec`` chooses of its files. Raises as ``read`` does for a bad file."""
    return sum(1 for _ in _rows(spec))


def unique(prompts: Iterable[Prompt], where: str) -> Iterator[Prompt]:
    """Passes the prompts on. At the end, raises UserError where ids stood twice, naming some."""
    seen: set[str] = set()
    twice: list[str] = []
    for prompt in prompts:
        known = len(seen)
        seen.add(prompt.id)
        if len(seen) == known and len(twice) < _REPEATS_NAMED and prompt.id not in twice:
            twice.append(prompt.id)
        yield prompt
    if twice:
        raise UserError(
            f"prompts file {one_line(without_credentials(where))} has duplicate ids "
            f"({', '.join(one_line(name, 60) for name in twice)}"
            f"{', ...' if len(twice) == _REPEATS_NAMED else ''}); ids name rows and seeds, so each "
            "must be unique: choose another prompts.id_column or remove the repeats"
        )
