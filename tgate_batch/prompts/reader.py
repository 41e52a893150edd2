"""Reads a prompt set and cuts it into shards.

A prompt set is streamed: only its ids are in memory, to refuse duplicates. A shuffled set is the
exception.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
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

    ``by`` is the column of their categories, ``given`` the settings that the config sets. Raises
    UserError for a file that is missing, empty, of another encoding or without such a column, for
    columns that may or may not be settings, and for a row whose text, id or setting is missing or
    invalid. :func:`unique` checks for duplicate ids.

    With ``spec.shuffle`` they come in the order of a hash of their ids; the prompts of the first
    ``limit`` hashes are then in memory.

    Example::

        [prompt.text for prompt in read_prompts(Prompts(path="demo", limit=3))]
    """
    if spec.shuffle is not None:
        every = read_prompts(spec.model_copy(update={"shuffle": None, "limit": None}), by, given)
        return iter(_smallest(every, spec.limit, partial(_hash, spec.shuffle)))
    if spec.repeated_ids == "number":  # from the beginning, so that the offset changes no id
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
    """Renames the second row of an id to ID-2, the third to ID-3, and so on."""
    times: dict[str, int] = {}
    for prompt in prompts:
        number = times[prompt.id] = times.get(prompt.id, 0) + 1
        yield prompt if number == 1 else prompt._replace(id=f"{prompt.id}-{number}")


@dataclass
class _Choice:
    """The columns of one file, chosen when its column names are known."""

    spec: Prompts
    by: str | None
    given: Collection[str] | None
    most: int | None
    source: PromptFile

    def __post_init__(self) -> None:
        self._columns: FileColumns | None = None
        self._names: dict[str, None] = {}
        self._checked = self.given is None
        self._loose = self.source.has_loose_rows

    def pick(self, names: Collection[str]) -> Collection[str] | None:
        """Returns the columns to read among those of the file; None if none has prompts."""
        try:
            self._columns = self._choose(names)
        except UserError:  # raised again with the first row, if there is one
            return None
        return self._columns.used[: self.most]

    def of(self, row: dict[str, Any]) -> FileColumns:
        """Returns the columns for a row; raises UserError if they are unsuitable or ambiguous."""
        if self._columns is None:
            self._columns = self._choose(row)
        elif self._loose and not row.keys() <= self._names.keys():
            self._columns = self._widened(self._columns, row)
        if not self._checked:
            self._checked = True
            if self.given is not None and not isinstance(row, Options):
                overrides = dict(self._columns.overrides)
                check_meant(self.spec, self.given, self.source, self._names, overrides)
        return self._columns

    def _choose(self, names: Collection[str]) -> FileColumns:
        self._names = dict.fromkeys(names)
        return FileColumns.choose(self.spec, self.by, self.source, self._names)

    def _widened(self, before: FileColumns, row: dict[str, Any]) -> FileColumns:
        """Adds the settings of a row that has more columns than those before it."""
        if len(self._names) > _MOST_NAMES:
            return before
        overrides = {
            setting: column
            for setting, column in self._choose({**self._names, **row}).overrides.items()
            if setting != "strength" or before.image is not None
        }
        if overrides == before.overrides:
            return before
        self._checked = self.given is None
        return replace(before, overrides=overrides)


class PromptColumns(NamedTuple):
    """The columns of a set's first file; ``overrides``: those with settings of their row."""

    files: int
    first: str
    overrides: tuple[str, ...]
    extra_columns: tuple[str, ...]
    unused: tuple[str, ...]


def describe_columns(spec: Prompts, by: str | None = None) -> PromptColumns:
    """Returns the columns that are used, based on the first row; raises as ``read_prompts``."""
    files = globbing.sources(spec)
    for choice, _, row in _rows(spec, by, None):
        columns = choice.of(row)
        names = (tuple(columns.overrides.values()), columns.extra_columns, columns.unused)
        return PromptColumns(
            len(files), str(files[0]), *(tuple(map(one_line, each)) for each in names)
        )
    _refuse_none(spec)


def _refuse_none(spec: Prompts) -> NoReturn:
    raise UserError(
        f"prompts file {globbing.name_paths(spec)} has no prompts"
        + (f" after the first {spec.offset}" if spec.offset else "")
    )


def _rows(
    spec: Prompts, by: str | None, given: Collection[str] | None, most: int | None = None
) -> Iterator[tuple[_Choice, int, dict[str, Any]]]:
    """Yields the rows of ``spec``, with their file's columns and their number in the file.

    ``most``: the number of columns to read, if a format can skip columns.
    """
    every = (
        (choice, line, row)
        for choice in (_Choice(spec, by, given, most, source) for source in globbing.sources(spec))
        for line, row in formats.rows(choice.source, choice.pick)
    )
    return itertools.islice(every, spec.offset, _stop(spec))


def _stop(spec: Prompts) -> int | None:
    """Returns the position in the set at which ``spec`` stops reading; None for its end."""
    return None if spec.limit is None else spec.offset + spec.limit


def shards(prompts: Iterable[Prompt], sizes: Iterable[int]) -> Iterator[Shard]:
    """Yields shards of these sizes, in order; the last one may be smaller."""
    prompts = iter(prompts)
    for index, size in enumerate(sizes):
        part = tuple(itertools.islice(prompts, size))
        if not part:
            return
        yield Shard(index, part)


_PARTS = 640  # a shard has 1/640 of the remaining prompts, so hundreds of workers end together
_FEWEST_PARTS = 8  # for small sets
_SMALLEST = 4  # prompts a shard


def shard_sizes(left: int, largest: int, batch: int) -> Iterator[int]:
    """Yields the sizes of shards for ``left`` prompts, smaller towards the end.

    Small shards at the end keep many workers busy; the sizes do not depend on the number of
    workers. They are multiples of ``batch``, because a partial batch costs as much as a full one.
    """
    whole = left
    while left > 0:
        size = next_size(left, whole, largest, batch)
        yield size
        left -= size


def next_size(left: int, whole: int, largest: int, batch: int) -> int:
    """Returns the size of the next shard when ``left`` of ``whole`` prompts remain."""
    parts = min(_PARTS, max(_FEWEST_PARTS, whole // 16))
    batches = math.ceil(max(_SMALLEST, left / parts) / batch)
    return min(left, largest, batches * batch)


def count(spec: Prompts) -> int:
    """Returns the number of prompts of ``spec``; raises as ``read_prompts`` for an invalid file."""
    return sum(1 for _ in _rows(spec, None, None, 1))


def unique(prompts: Iterable[Prompt], where: str) -> Iterator[Prompt]:
    """Yields the prompts; at the end, raises UserError with the first duplicate ids, if any."""
    seen: set[str] = set()
    repeated: list[str] = []
    for prompt in prompts:
        known = len(seen)
        seen.add(prompt.id)
        if len(seen) == known and len(repeated) < _REPEATS_NAMED and prompt.id not in repeated:
            repeated.append(prompt.id)
        yield prompt
    if repeated:
        names = ", ".join(one_line(name, 60) for name in repeated)
        more = ", ..." if len(repeated) == _REPEATS_NAMED else ""
        raise UserError(
            f"prompts file {one_line(without_credentials(where))} has duplicate ids ({names}{more})"
            ", but ids identify rows and determine seeds. Fix: choose another prompts.id_column, "
            "remove the repeats, or write prompts.repeated_ids: number"
        )
