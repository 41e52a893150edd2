"""Reads a prompt set and cuts it into shards.

Everything streams: a prompt set is never held in memory, only its ids (to refuse duplicates).
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NoReturn

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.prompts import formats
from tgate_batch.prompts.formats import refuse
from tgate_batch.prompts.source import Source
from tgate_batch.records import Prompt, Shard
from tgate_batch.storage import without_credentials

TEXT_COLUMNS = ("caption", "prompt", "text", "captions", "prompts", "TEXT")
ID_COLUMNS = ("prompt_id", "id", "image_id", "key", "uid")
IMAGE_COLUMNS = ("image", "image_path", "file_name")
LONGEST_TEXT = 100_000  # characters
LONGEST_ID = 512  # characters

_IDS = frozenset(ID_COLUMNS)
_REPEATS_NAMED = 5
_COLUMNS_NAMED = 20
_NO_PART_OF_AN_ID = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read(spec: Prompts, by: str | None = None) -> Iterator[Prompt]:
    """Streams the prompts of ``spec`` in file order, after ``offset``, at most ``limit``.

    ``by`` is the column that holds their categories. Raises UserError for a file that is missing,
    empty, not UTF-8 or has no such column, and for a row whose text or id is missing or cannot be
    one. Duplicate ids are left to :func:`unique`.
    """
    source = _source(spec)
    columns: _Columns | None = None
    for position, (line, row) in enumerate(_rows(source, spec), start=spec.offset):
        columns = columns or _Columns.choose(spec, by, source, row)
        yield columns.prompt(line, position, row)
    if columns is None:
        raise UserError(
            f"prompts file {source} holds no prompts"
            + (f" after the first {spec.offset}" if spec.offset else "")
        )


def _source(spec: Prompts) -> Source:
    try:
        return Source.of(spec.path)
    except UserError as error:
        raise UserError(f"prompts file {error}") from None


def _rows(source: Source, spec: Prompts) -> Iterator[formats.Row]:
    """The rows of a file that ``spec`` chooses."""
    stop = None if spec.limit is None else spec.offset + spec.limit
    return itertools.islice(formats.rows(source), spec.offset, stop)


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
    Shards are whole batches of ``batch`` prompts, the very last ones half a batch.
    """
    parts = min(_PARTS, max(_FEWEST_PARTS, left // 16))
    half, last = max(_SMALLEST, batch // 2), parts * batch // 4
    while left > 0:
        unit = batch if left >= last else half
        units = math.ceil(max(_SMALLEST, left / parts) / unit)
        size = min(left, largest, units * unit)
        yield size
        left -= size


def count(spec: Prompts) -> int:
    """How many prompts ``spec`` chooses of its file. Raises as ``read`` does for a bad file."""
    return sum(1 for _ in _rows(_source(spec), spec))


def unique(prompts: Iterable[Prompt], path: str) -> Iterator[Prompt]:
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
            f"prompts file {one_line(without_credentials(path))} has duplicate ids "
            f"({', '.join(one_line(name, 60) for name in twice)}"
            f"{', ...' if len(twice) == _REPEATS_NAMED else ''}); ids name rows and seeds, so each "
            "must be unique: choose another prompts.id_column or remove the repeats"
        )


@dataclass(frozen=True)
class _Columns:
    """Which columns of a file hold what a prompt is made of."""

    source: Source
    text: str | None
    id: str | None
    image: str | None
    category: str | None

    @classmethod
    def choose(
        cls, spec: Prompts, by: str | None, source: Source, row: dict[str, Any]
    ) -> "_Columns":
        def named(column: str) -> str:
            if column not in row:
                raise UserError(
                    f"prompts file {source} has no column {shown(column)}; it has: {_names(row)}"
                )
            return column

        def guess(candidates: Iterable[str]) -> str | None:
            return next((name for name in candidates if name in row), None)

        image = named(spec.image_column) if spec.image_column else guess(IMAGE_COLUMNS)
        text = named(spec.text_column) if spec.text_column else guess(TEXT_COLUMNS)
        if text is None and image is None:
            raise UserError(
                f"prompts file {source} has no column named like a caption ({_names(row)}); "
                "name it with prompts.text_column"
            )
        identity = named(spec.id_column) if spec.id_column else guess(ID_COLUMNS)
        chosen = image if spec.image_column or text is None else None
        return cls(source, text, identity, chosen, named(by) if by else None)

    def prompt(self, line: int, position: int, row: dict[str, Any]) -> Prompt:
        text = "" if self.text is None else self._text(line, row.get(self.text))
        image = None if self.image is None else self._picture(line, row.get(self.image))
        if self.id is not None:
            identity = self._id(line, row.get(self.id))
        elif len(row) == 1 or _IDS.isdisjoint(row):
            identity = _made_id(position, text)
        else:
            (other, *_) = _IDS.intersection(row)
            refuse(self.source, line, f"it has an id ({other!r}), and the first row has none")
        category = None if self.category is None else self._category(line, row.get(self.category))
        return Prompt(identity, text, image, category)

    def _text(self, line: int, value: Any) -> str:
        if type(value) is not str:
            if value is None:
                self._refuse(line, self.text, "no text")
            self._refuse(line, self.text, f"{shown(value)} is no text, found", "write it in quotes")
        text = value.strip()
        if not text:
            self._refuse(line, self.text, "no text")
        if len(text) > LONGEST_TEXT:
            self._refuse(line, self.text, f"a text of more than {LONGEST_TEXT:,} characters")
        if "\0" in text or not (text.isascii() or _encodable(text)):
            self._refuse(line, self.text, f"a text with {_odd(text)}", "remove it")
        return text

    def _id(self, line: int, value: Any) -> str:
        if type(value) is str:
            found = value.strip()
        elif type(value) is int:
            found = str(value)
        elif value is None:
            found = ""
        else:
            self._refuse(
                line, self.id, f"{shown(value)} is no id, found", "give text or an integer"
            )
        if not found:
            self._refuse(line, self.id, "no id", "give every row one, or remove the column")
        if len(found) > LONGEST_ID:
            self._refuse(line, self.id, f"an id of more than {LONGEST_ID} characters")
        if not found.isprintable() and (odd := _NO_PART_OF_AN_ID.search(found)):
            self._refuse(line, self.id, f"an id with the character {odd[0]!a}", "remove it")
        return found

    def _category(self, line: int, value: Any) -> str:
        if not isinstance(value, str | int | float | None):
            self._refuse(line, self.category, f"{shown(value)} is no category, found")
        if _odd(found := str(value)):
            self._refuse(line, self.category, f"a category with {_odd(found)}", "remove it")
        if len(found) > LONGEST_ID:
            self._refuse(line, self.category, f"a category of more than {LONGEST_ID} characters")
        return found

    def _picture(self, line: int, value: Any) -> bytes:
        if isinstance(value, dict):  # the Hugging Face image struct
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            self._refuse(line, self.image, "no picture", "give its path or its bytes")
        try:
            picture = self.source.beside(value)
            fault = picture.fault()
            if fault is None:
                with picture.open() as file:
                    return file.read()
        except OSError as error:
            fault = f"cannot be read: {one_line(error.strerror or error)}"
        except UserError as error:
            refuse(self.source, line, f"picture {error}")
        refuse(self.source, line, f"picture {shown(without_credentials(value), 200)} {fault}")

    def _refuse(self, line: int, column: str | None, fault: str, do: str = "") -> NoReturn:
        refuse(self.source, line, f"{fault} in column {shown(column)}" + (f"; {do}" if do else ""))


def _names(row: dict[str, Any]) -> str:
    """The first names of a row's columns."""
    names = [one_line(name, 60) for name in itertools.islice(row, _COLUMNS_NAMED)]
    return ", ".join(names) + (", ..." if len(row) > _COLUMNS_NAMED else "")


def _encodable(text: str) -> bool:
    """Whether it can be written as UTF-8: no half of a surrogate pair stands alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _odd(text: str) -> str:
    """Which character cannot stand in what a row holds; empty: none."""
    if "\0" in text:
        return "a NUL character"
    return "" if _encodable(text) else "half of a surrogate pair"


def _made_id(position: int, text: str) -> str:
    """An id from content and position: stable for the file, and told apart when texts repeat."""
    return f"{str(position).zfill(8)}-{blake2b(text.encode(), digest_size=6).hexdigest()}"
