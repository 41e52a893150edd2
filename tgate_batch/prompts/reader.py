"""Reads a prompt set and cuts it into shards.

Everything streams: a prompt set is never held in memory, only its ids (to refuse duplicates). A
shuffled set is the exception.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, NoReturn

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError, one_line
from tgate_batch.prompts import formats, globbing
from tgate_batch.prompts.columns import FileColumns
from tgate_batch.prompts.settings import check_meant
from tgate_batch.prompts.source import PromptFile
from tgate_batch.prompts.webui import Options
from tgate_batch.records import Prompt, Shard
from tgate_batch.storage import without_credentials

_REPEATS_NAMED = 5
_MOST_NAMES = 10_000  # of columns that rows are looked for settings in


def read_prompts(
    spec: Prompts, by: str | None = None, given: Collection[str] = ()
) -> Iterator[Prompt]:
    """Streams the prompts of ``spec``, file after file, after ``offset``, at most ``limit``.

    ``by`` is the column that holds their categories, ``given`` the settings that the config gives
    itself. Raises UserError for a file that is missing, empty, of another encoding or without such
    a column, for columns that may or may not be settings, and for a row whose text, id or setting
    is missing or cannot be one. Duplicate ids are left to :func:`unique`.

    With ``spec.shuffle`` they come in the order of a hash of their ids, and those of the first
    ``limit`` hashes are held in memory.
    """
    if spec.shuffle is not None:
        every = read_prompts(spec.model_copy(update={"shuffle": None, "limit": None}), by, given)
        return iter(_smallest(every, spec.limit, partial(_hash, spec.shuffle)))
    if spec.repeated_ids == "number":  # from the set's begin, so that no offset changes an id
        whole = spec.model_copy(update={"offset": 0, "limit": _stop(spec)})
        return itertools.islice(_numbered(_read(whole, by, given)), spec.offset, None)
    return _read(spec, by, given)


def _smallest(
    prompts: Iterable[Prompt], limit: int | None, key: Callable[[Prompt], bytes]
) -> list[Prompt]:
    return sorted(prompts, key=key) if limit is None else heapq.nsmallest(limit, prompts, key)


def _hash(seed: int, prompt: Prompt) -> bytes:
    return blake2b(f"{seed} {prompt.id}".encode()).digest()


def _read(spec: Prompts, by: str | None, given: Collection[str]) -> Iterator[Prompt]:
    source_row = spec.offset - 1
    for source_row, (choice, line, row) in enumerate(_rows(spec, by, given), start=spec.offset):
        yield choice.of(row).prompt(line, source_row, row)
    if source_row < spec.offset:
        _refuse_none(spec)


def _numbered(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Gives the second row of an id ``-2``, the third ``-3``, and so on."""
    times: dict[str, int] = {}
    for prompt in prompts:
        number = times[prompt.id] = times.get(prompt.id, 0) + 1
        yield prompt if number == 1 else prompt._replace(id=f"{prompt.id}-{number}")


class _Choice:
    """The columns of one file: chosen once, when its names are known."""

    def __init__(
        self,
        spec: Prompts,
        by: str | None,
        given: Collection[str] | None,
        most: int | None,
        source: PromptFile,
    ):
        self.source = source
        self._most = most
        self._spec, self._by, self._given = spec, by, given
        self._columns: FileColumns | None = None
        self._names: dict[str, None] = {}
        self._checked = given is None
        self._loose = source.has_loose_rows

    def pick(self, names: Collection[str]) -> Collection[str] | None:
        """The columns to read of all that the file has; None if its prompts are in none."""
        try:
            self._columns = self._choose(names)
        except UserError:  # raised again with the first row, if it comes to that
            return None
        return self._columns.used[: self._most]

    def of(self, row: dict[str, Any]) -> FileColumns:
        """The columns, for a row. Raises UserError where they cannot be what they should be."""
        if self._columns is None:
            self._columns = self._choose(row)
        elif self._loose and not row.keys() <= self._names.keys():
            self._columns = self._widened(self._columns, row)
        if not self._checked:
            self._checked = True
            if self._given is not None and not isinstance(row, Options):
                overrides = dict(self._columns.overrides)
                check_meant(self._spec, self._given, self.source, self._names, overrides)
        return self._columns

    def _choose(self, names: Collection[str]) -> FileColumns:
        self._names = dict.fromkeys(names)
        return FileColumns.choose(self._spec, self._by, self.source, self._names)

    def _widened(self, before: FileColumns, row: dict[str, Any]) -> FileColumns:
        """Takes in the settings of a row that has further columns than those before it."""
        if len(self._names) > _MOST_NAMES:
            return before
        overrides = {
            setting: column
            for setting, column in self._choose({**self._names, **row}).overrides.items()
            if setting != "strength" or before.image is not None
        }
        if overrides == before.overrides:
            return before
        self._checked = self._given is None
        return replace(before, overrides=overrides)


class PromptColumns(NamedTuple):
    """The columns of a set's first file. ``own``: those that say how their row is drawn."""

    files: int
    first: str
    overrides: tuple[str, ...]
    extra_columns: tuple[str, ...]
    unused: tuple[str, ...]


def describe_columns(spec: Prompts, by: str | None = None) -> PromptColumns:
    """Which columns are used, as the first row has them; raises as ``read_prompts`` does."""
    files = globbing.sources(spec)
    for choice, _, row in _rows(spec, by, None):
        found = choice.of(row)
        names = (tuple(found.overrides.values()), found.extra_columns, found.unused)
        return PromptColumns(
            len(files), str(files[0]), *(tuple(map(one_line, each)) for each in names)
        )
    _refuse_none(spec)


def _refuse_none(spec: Prompts) -> NoReturn:
    raise UserError(
        f"prompts file {globbing.name_paths(spec)} holds no prompts"
        + (f" after the first {spec.offset}" if spec.offset else "")
    )


def _rows(
    spec: Prompts, by: str | None, given: Collection[str] | None, most: int | None = None
) -> Iterator[tuple[_Choice, int, dict[str, Any]]]:
    """The rows that ``spec`` chooses, with their file's columns and where they stand in it.

    ``most``: of so many columns alone, where others can be left unread.
    """
    every = (
        (choice, line, row)
        for choice in (_Choice(spec, by, given, most, source) for source in globbing.sources(spec))
        for line, row in formats.rows(choice.source, choice.pick)
    )
    return itertools.islice(every, spec.offset, _stop(spec))


def _stop(spec: Prompts) -> int | None:
    """The place in the set at which ``spec`` stops reading."""
    return None if spec.limit is None else spec.offset + spec.limit


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
    """The number of prompts that ``spec`` chooses; raises as ``read_prompts`` for a bad file."""
    return sum(1 for _ in _rows(spec, None, None, 1))


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
            "must be unique: choose another prompts.id_column, remove the repeats, or write "
            "prompts.repeated_ids: number"
        )
