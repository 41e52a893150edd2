"""Chooses the columns of a prompt file, and converts its rows to prompts."""

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
    """The columns of a file that are read; ``overrides``: setting -> its column.

    ``strength``: the default for rows that have an image but no strength.
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
    roots: tuple[str, ...] = ()  # additional folders of its images

    @classmethod
    def choose(
        cls, spec: Prompts, by: str | None, source: PromptFile, names: Collection[str]
    ) -> "FileColumns":
        """Chooses among a file's columns; raises UserError for a missing one."""

        def named(column: str) -> str:
            name = like(names, column)
            if name is None:
                raise UserError(
                    f"prompts file {source} has no column {shown(column)}; it has: {_names(names)}"
                )
            return name

        def check_images(setting: str) -> None:
            if image is None:
                raise UserError(
                    f"{setting} needs input images, but prompts file {source} has no column of "
                    f"images ({_names(names)}). Fix: name it with prompts.image_column"
                )

        image = named(spec.image_column) if spec.image_column else first_like(names, IMAGE_COLUMNS)
        text = named(spec.text_column) if spec.text_column else first_like(names, TEXT_COLUMNS)
        if text is None and image is None:
            raise UserError(
                f"prompts file {source} has no column named like a caption ({_names(names)}). Fix: "
                "name it with prompts.text_column"
            )
        identity = named(spec.id_column) if spec.id_column else first_like(names, ID_COLUMNS)
        if spec.strength is not None:
            check_images(f"prompts.strength {spec.strength:g}")
        category = named(by) if by else None
        try:
            overrides = columns_of_settings(spec.columns, names, {text, identity, image, category})
        except KeyError as error:
            named(error.args[0])
            raise
        if image is None:
            renamed = overrides.pop("strength", None)
            if renamed is not None and spec.columns.strength != Columns().strength:
                check_images(f"prompts.columns.strength {shown(renamed)}")
        used = spec.image_column or text is None
        if not (used or spec.strength is not None or "strength" in overrides):
            image = None
        taken = {text, identity, image, category}
        others = [name for name in names if name and name not in {*taken, *overrides.values()}]
        if isinstance(spec.keep, bool):
            extra_columns = others if spec.keep else []
        else:
            extra_columns = [named(column) for column in spec.keep]
        unused = tuple(name for name in others if name not in extra_columns)
        chosen = (text, identity, image, category, spec.strength, overrides)
        return cls(source, *chosen, tuple(extra_columns), unused, spec.image_roots)

    @property
    def used(self) -> list[str]:
        """The columns that are read from the file."""
        chosen = (self.text, self.id, self.image, self.category)
        every = (*chosen, *self.overrides.values(), *self.extra_columns)
        return list(dict.fromkeys(name for name in every if name is not None))

    def prompt(self, line: int, source_row: int, row: Row) -> Prompt:
        """Returns the row's prompt; raises UserError, naming the row, for an invalid cell."""
        text = "" if self.text is None else self._text(line, self.text, row.get(self.text))
        overrides = self._overrides(line, row) if self.overrides else AS_THE_RUN
        image = None
        if self.image is not None:
            cell = row.get(self.image)
            if isinstance(cell, dict):  # the struct in Hugging Face's sets
                cell = cell.get("bytes") or cell.get("path")
            optional = self._is_image_to_image and self.text is not None
            if not (optional and is_empty(cell)):
                image = self._image(line, cell)
        if self._is_image_to_image:
            overrides = self._with_strength(line, overrides, image)
        if self.id is not None:
            identity = self._id(line, row.get(self.id))
        elif len(row) == 1 or _IDS.isdisjoint(row):
            identity = _made_id(source_row, text)
        else:
            (other, *_) = _IDS.intersection(row)
            refuse(self.source, line, f"it has an id ({other!r}), but the first row has none")
        category = None if self.category is None else self._category(line, row.get(self.category))
        extra_columns = self._extra_columns(line, row) if self.extra_columns else None
        return Prompt(identity, text, image, category, overrides, source_row, extra_columns)

    def _text(self, line: int, column: str, value: Any) -> str:
        if type(value) is not str:
            if value is None:
                self._refuse(line, column, "no text")
            self._refuse(line, column, f"{shown(value)} is not text", "write it in quotes")
        text = value.strip()
        if is_empty(text):
            self._refuse(line, column, "no text" + (f" but {shown(text)}" if text else ""))
        if len(text) > LONGEST_TEXT:
            self._refuse(line, column, f"a text of more than {LONGEST_TEXT:,} characters")
        if odd := _odd(text):
            self._refuse(line, column, f"a text with {odd}", "remove it")
        return text

    def _id(self, line: int, value: Any) -> str:
        if type(value) is str:
            text = value.strip()
        elif type(value) is int:
            text = str(value)
        elif value is None:
            text = ""
        else:
            self._refuse(line, self.id, f"{shown(value)} is not an id", "give text or an integer")
        if not text:
            self._refuse(line, self.id, "no id", "give every row one, or remove the column")
        if len(text) > LONGEST_ID:
            self._refuse(line, self.id, f"an id of more than {LONGEST_ID} characters")
        if not text.isprintable() and (odd := _NO_PART_OF_AN_ID.search(text)):
            self._refuse(line, self.id, f"an id with the character {odd[0]!a}", "remove it")
        return text

    def _category(self, line: int, value: Any) -> str:
        if not isinstance(value, str | int | float | None):
            self._refuse(line, self.category, f"{shown(value)} is not a category")
        if _odd(text := str(value)):
            self._refuse(line, self.category, f"a category with {_odd(text)}", "remove it")
        if len(text) > LONGEST_ID:
            self._refuse(line, self.category, f"a category of more than {LONGEST_ID} characters")
        return text

    def _image(self, line: int, value: Any) -> bytes:
        if not isinstance(value, str | bytes) or not value:
            self._refuse(line, self.image, "no image", "give its path or its bytes")
        try:
            return image_of(self.source, self.roots, value)
        except UserError as error:
            refuse(self.source, line, f"image {error}")

    @property
    def _is_image_to_image(self) -> bool:
        """True if rows with an image are rendered from it."""
        return self.strength is not None or "strength" in self.overrides

    def _with_strength(self, line: int, overrides: RowSettings, image: bytes | None) -> RowSettings:
        """Returns the row's settings with the default strength, if it has an image."""
        if image is not None and overrides.strength is None:
            overrides = overrides._replace(strength=self.strength)
        if image is None and overrides.strength is not None:
            refuse(
                self.source,
                line,
                f"strength {overrides.strength:g} needs an image, but the row has none in column "
                f"{shown(self.image)}. Fix: give one, or empty the cell",
            )
        if image is not None and overrides.strength is None:
            refuse(
                self.source,
                line,
                f"it has an image in column {shown(self.image)} but no strength. Fix: give one, or "
                "set prompts.strength for all rows",
            )
        return overrides

    def _overrides(self, line: int, row: Row) -> RowSettings:
        """Returns the settings of the row; an empty cell sets nothing."""
        settings: dict[str, Any] = {}
        for setting, column in self.overrides.items():
            value = row.get(column)
            if is_empty(value):
                continue
            if setting == "negative_prompt":
                settings[setting] = self._text(line, column, value)
                continue
            wanted, read = NUMBERS[setting]
            settings[setting] = read(value)
            if settings[setting] is None:
                self._refuse(
                    line,
                    column,
                    f"{shown(value)} is not a valid {setting} ({wanted})",
                    f"empty the cell, or disable the column (prompts.columns.{setting}: null)",
                )
        return RowSettings(**settings) if settings else AS_THE_RUN

    def _extra_columns(self, line: int, row: Row) -> str:
        cells = ((name, row.get(name)) for name in self.extra_columns)
        values = {name: None if is_nan(value) else value for name, value in cells}
        try:
            text = json.dumps(values, ensure_ascii=False, default=_as_text)
        except (ValueError, RecursionError):
            text = "\0"
        if _odd(text) or len(text) > LONGEST_TEXT:
            refuse(
                self.source,
                line,
                "its further columns cannot be kept. Fix: name fewer in prompts.keep",
            )
        return text

    def _refuse(self, line: int, column: str | None, fault: str, fix: str = "") -> NoReturn:
        advice = f". Fix: {fix}" if fix else ""
        refuse(self.source, line, f"{fault} in column {shown(column)}{advice}")


def _as_text(value: Any) -> str:
    """Returns a value that JSON cannot represent as text: a date, or the number of bytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _names(columns: Collection[str]) -> str:
    """Returns the first names of a file's columns."""
    names = [one_line(name, 60) for name in itertools.islice(columns, _COLUMNS_NAMED)]
    return ", ".join(names) + (", ..." if len(columns) > _COLUMNS_NAMED else "")


def _odd(text: str) -> str:
    """Returns the description of a character that no cell may contain; empty if there is none."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    return ""


def _made_id(source_row: int, text: str) -> str:
    """Returns an id from content and row: stable for the set, and unique if texts repeat."""
    return f"{str(source_row).zfill(8)}-{blake2b(text.encode(), digest_size=6).hexdigest()}"
