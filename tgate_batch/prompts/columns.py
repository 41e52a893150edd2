"""Which columns of a file say what, and a row as a prompt."""

import itertools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NoReturn

from tgate_batch.config import Columns, Prompts
from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.prompts.formats import refuse
from tgate_batch.prompts.row_images import image_of
from tgate_batch.prompts.settings import (
    NUMBERS,
    columns_of_settings,
    first_like,
    is_empty,
    is_nan,
    like,
)
from tgate_batch.prompts.source import PromptFile
from tgate_batch.records import AS_THE_RUN, Prompt, RowSettings

TEXT_COLUMNS = ("caption", "prompt", "text", "captions", "prompts")
ID_COLUMNS = ("prompt_id", "id", "image_id", "key", "uid")
IMAGE_COLUMNS = ("image", "image_path", "file_name")
LONGEST_TEXT = 100_000  # characters
LONGEST_ID = 512  # characters

_IDS = frozenset(ID_COLUMNS)
_COLUMNS_NAMED = 20
_NO_PART_OF_AN_ID = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Row = dict[str, Any]


@dataclass(frozen=True)
class FileColumns:
    """Which columns of a file hold what a prompt is made of; ``own``: setting -> its column.

    ``strength``: with which rows begin with their picture that say none.
    """

    source: PromptFile
    text: str | None
    id: str | None
    image: str | None
    category: str | None
    strength: float | None
    overrides: Mapping[str, str]
    extra_columns: tuple[str, ...]
    unused: tuple[str, ...]
    roots: tuple[str, ...] = ()  # further folders that its images may lie in

    @classmethod
    def choose(
        cls, spec: Prompts, by: str | None, source: PromptFile, names: Collection[str]
    ) -> "FileColumns":
        """Chooses among a file's columns. Raises UserError for one that it lacks."""

        def named(column: str) -> str:
            found = like(names, column)
            if found is None:
                raise UserError(
                    f"prompts file {source} has no column {shown(column)}; it has: {_names(names)}"
                )
            return found

        image = named(spec.image_column) if spec.image_column else first_like(names, IMAGE_COLUMNS)
        text = named(spec.text_column) if spec.text_column else first_like(names, TEXT_COLUMNS)
        if text is None and image is None:
            raise UserError(
                f"prompts file {source} has no column named like a caption ({_names(names)}); "
                "name it with prompts.text_column"
            )
        identity = named(spec.id_column) if spec.id_column else first_like(names, ID_COLUMNS)
        if spec.strength is not None and image is None:
            raise UserError(
                f"prompts.strength {spec.strength:g} is of pictures, and prompts file {source} has "
                f"no column of them ({_names(names)}); name it with prompts.image_column"
            )
        category = named(by) if by else None
        try:
            overrides = columns_of_settings(spec.columns, names, {text, identity, image, category})
        except KeyError as error:
            named(error.args[0])
            raise
        if image is None:
            renamed = overrides.pop("strength", None)
            if renamed is not None and spec.columns.strength != Columns().strength:
                raise UserError(
                    f"prompts.columns.strength {shown(renamed)} is of pictures, and prompts file "
                    f"{source} has no column of them ({_names(names)}); name it with "
                    "prompts.image_column"
                )
        begins = spec.strength is not None or "strength" in overrides
        picture = image if spec.image_column or text is None or begins else None
        taken = {text, identity, picture, category}
        others = [name for name in names if name and name not in {*taken, *overrides.values()}]
        if isinstance(spec.keep, bool):
            extra_columns = others if spec.keep else []
        else:
            extra_columns = [named(column) for column in spec.keep]
        unused = tuple(name for name in others if name not in extra_columns)
        chosen = (
            text,
            identity,
            picture,
            category,
            spec.strength,
            overrides,
            tuple(extra_columns),
            unused,
        )
        return cls(source, *chosen, spec.image_roots)

    @property
    def used(self) -> list[str]:
        """The columns that are read of the file."""
        chosen = (
            self.text,
            self.id,
            self.image,
            self.category,
            *self.overrides.values(),
            *self.extra_columns,
        )
        return list(dict.fromkeys(name for name in chosen if name is not None))

    def prompt(self, line: int, source_row: int, row: Row) -> Prompt:
        """The row's prompt. Raises UserError, naming the row, where a cell cannot be what it is."""
        text = "" if self.text is None else self._text(line, self.text, row.get(self.text))
        overrides = self._own(line, row) if self.overrides else AS_THE_RUN
        image = None
        if self.image is not None:
            cell = _contents(row.get(self.image))
            optional = self._begins and self.text is not None
            if not (optional and is_empty(cell)):
                image = self._picture(line, cell)
        if self._begins:
            overrides = self._beginning(line, overrides, image)
        if self.id is not None:
            identity = self._id(line, row.get(self.id))
        elif len(row) == 1 or _IDS.isdisjoint(row):
            identity = _made_id(source_row, text)
        else:
            (other, *_) = _IDS.intersection(row)
            refuse(self.source, line, f"it has an id ({other!r}), and the first row has none")
        category = None if self.category is None else self._category(line, row.get(self.category))
        extra_columns = self._kept(line, row) if self.extra_columns else None
        return Prompt(identity, text, image, category, overrides, source_row, extra_columns)

    def _text(self, line: int, column: str, value: Any) -> str:
        if type(value) is not str:
            if value is None:
                self._refuse(line, column, "no text")
            self._refuse(line, column, f"{shown(value)} is no text, found", "write it in quotes")
        text = value.strip()
        if is_empty(text):
            self._refuse(line, column, "no text" + (f" but {shown(text)}" if text else ""))
        if len(text) > LONGEST_TEXT:
            self._refuse(line, column, f"a text of more than {LONGEST_TEXT:,} characters")
        if "\0" in text or not (text.isascii() or _encodable(text)):
            self._refuse(line, column, f"a text with {_odd(text)}", "remove it")
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
        if not isinstance(value, str | bytes) or not value:
            self._refuse(line, self.image, "no picture", "give its path or its bytes")
        try:
            return image_of(self.source, self.roots, value)
        except UserError as error:
            refuse(self.source, line, f"picture {error}")

    @property
    def _begins(self) -> bool:
        """Whether rows with a picture are drawn from it."""
        return self.strength is not None or "strength" in self.overrides

    def _beginning(self, line: int, overrides: RowSettings, image: bytes | None) -> RowSettings:
        """The row's settings with its strength, where it has a picture to begin with."""
        if image is None:
            if overrides.strength is not None:
                refuse(
                    self.source,
                    line,
                    f"strength {overrides.strength:g} needs an image, and the row has none in "
                    f"column {shown(self.image)}. Fix: give one, or empty the cell",
                )
            return overrides
        if overrides.strength is None and self.strength is None:
            refuse(
                self.source,
                line,
                f"it has a picture in column {shown(self.image)} and no strength; give one, or "
                "prompts.strength for all rows",
            )
        return (
            overrides
            if overrides.strength is not None
            else overrides._replace(strength=self.strength)
        )

    def _own(self, line: int, row: Row) -> RowSettings:
        """What the row says of its own pictures; an empty cell says nothing."""
        found: dict[str, Any] = {}
        for setting, column in self.overrides.items():
            value = row.get(column)
            if is_empty(value):
                continue
            if setting == "negative_prompt":
                found[setting] = self._text(line, column, value)
                continue
            wanted, read = NUMBERS[setting]
            number = read(value)
            if number is None:
                self._refuse(
                    line,
                    column,
                    f"{shown(value)} is no {setting} ({wanted}), found",
                    f"empty the cell, or switch the column off (prompts.columns.{setting}: null)",
                )
            found[setting] = number
        return RowSettings(**found) if found else AS_THE_RUN

    def _kept(self, line: int, row: Row) -> str:
        cells = ((name, row.get(name)) for name in self.extra_columns)
        extra_columns = {name: None if is_nan(value) else value for name, value in cells}
        try:
            text = json.dumps(extra_columns, ensure_ascii=False, default=_as_text)
        except (ValueError, RecursionError):
            text = "\0"
        if _odd(text) or len(text) > LONGEST_TEXT:
            refuse(self.source, line, "its columns cannot all be kept; name fewer (prompts.keep)")
        return text

    def _refuse(self, line: int, column: str | None, fault: str, do: str = "") -> NoReturn:
        refuse(self.source, line, f"{fault} in column {shown(column)}" + (f"; {do}" if do else ""))


def _contents(cell: Any) -> Any:
    """A picture's bytes or path, also out of the struct that Hugging Face's sets have."""
    return (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell


def _as_text(value: Any) -> str:
    """What JSON has no form for: a date, or bytes by their number."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _names(columns: Collection[str]) -> str:
    """The first names of a file's columns."""
    names = [one_line(name, 60) for name in itertools.islice(columns, _COLUMNS_NAMED)]
    return ", ".join(names) + (", ..." if len(columns) > _COLUMNS_NAMED else "")


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


def _made_id(source_row: int, text: str) -> str:
    """An id from content and row: stable for the set, and told apart when texts repeat."""
    return f"{str(source_row).zfill(8)}-{blake2b(text.encode(), digest_size=6).hexdigest()}"
