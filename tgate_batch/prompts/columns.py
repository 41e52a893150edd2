"""Which columns of a file say what, and a row as a prompt."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NoReturn

from tgate_batch.config import Columns, Prompts
from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.prompts.formats import refuse
from tgate_batch.prompts.source import Source
from tgate_batch.records import AS_THE_RUN, Prompt, RowSettings
from tgate_batch.storage import without_credentials

TEXT_COLUMNS = ("caption", "prompt", "text", "captions", "prompts")
ID_COLUMNS = ("prompt_id", "id", "image_id", "key", "uid")
IMAGE_COLUMNS = ("image", "image_path", "file_name")
LONGEST_TEXT = 100_000  # characters
LONGEST_ID = 512  # characters

_IDS = frozenset(ID_COLUMNS)
_ALSO = {"steps": ("num_inference_steps",)}  # other names of a setting's column
_COLUMNS_NAMED = 20
_NO_PART_OF_AN_ID = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Row = dict[str, Any]


@dataclass(frozen=True)
class FileColumns:
    """Which columns of a file hold what a prompt is made of; ``own``: setting -> its column.

    ``strength``: with which rows begin with their picture that say none.
    """

    source: Source
    text: str | None
    id: str | None
    image: str | None
    category: str | None
    strength: float | None
    own: Mapping[str, str]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    @classmethod
    def choose(cls, spec: Prompts, by: str | None, source: Source, row: Row) -> "FileColumns":
        """The columns as the file's first row has them. Raises UserError for one that it lacks."""

        def named(column: str) -> str:
            found = _like(row, column)
            if found is None:
                raise UserError(
                    f"prompts file {source} has no column {shown(column)}; it has: {_names(row)}"
                )
            return found

        def guess(candidates: Iterable[str]) -> str | None:
            return next(filter(None, (_like(row, name) for name in candidates)), None)

        image = named(spec.image_column) if spec.image_column else guess(IMAGE_COLUMNS)
        text = named(spec.text_column) if spec.text_column else guess(TEXT_COLUMNS)
        if text is None and image is None:
            raise UserError(
                f"prompts file {source} has no column named like a caption ({_names(row)}); "
                "name it with prompts.text_column"
            )
        identity = named(spec.id_column) if spec.id_column else guess(ID_COLUMNS)
        if spec.strength is not None and image is None:
            raise UserError(
                f"prompts.strength {spec.strength:g} is of pictures, and prompts file {source} has "
                f"no column of them ({_names(row)}); name it with prompts.image_column"
            )
        category = named(by) if by else None
        taken = {text, identity, image, category}
        own = {}
        for setting, standard in Columns():
            column = getattr(spec.columns, setting)
            if column == standard:
                found = guess((standard, *_ALSO.get(setting, ())))
            else:
                found = named(column) if column else None
            if found is not None and found not in taken:
                own[setting] = found
        if image is None:
            own.pop("strength", None)
        begins = spec.strength is not None or "strength" in own
        picture = image if spec.image_column or text is None or begins else None
        taken = {text, identity, picture, category}
        others = [name for name in row if name and name not in {*taken, *own.values()}]
        if isinstance(spec.keep, bool):
            kept = others if spec.keep else []
        else:
            kept = [named(column) for column in spec.keep]
        unused = tuple(name for name in others if name not in kept)
        return cls(
            source, text, identity, picture, category, spec.strength, own, tuple(kept), unused
        )

    def prompt(self, line: int, place: int, row: Row) -> Prompt:
        """The row's prompt. Raises UserError, naming the row, where a cell cannot be what it is."""
        text = "" if self.text is None else self._text(line, self.text, row.get(self.text))
        own = self._own(line, row) if self.own else AS_THE_RUN
        image = None
        if self.image is not None:
            cell = row.get(self.image)
            if not (self._begins and _is_empty(cell)):
                image = self._picture(line, cell)
        if self._begins:
            own = self._beginning(line, own, image)
        if self.id is not None:
            identity = self._id(line, row.get(self.id))
        elif len(row) == 1 or _IDS.isdisjoint(row):
            identity = _made_id(place, text)
        else:
            (other, *_) = _IDS.intersection(row)
            refuse(self.source, line, f"it has an id ({other!r}), and the first row has none")
        category = None if self.category is None else self._category(line, row.get(self.category))
        kept = self._kept(line, row) if self.kept else None
        return Prompt(identity, text, image, category, own, place, kept)

    def _text(self, line: int, column: str, value: Any) -> str:
        if type(value) is not str:
            if value is None:
                self._refuse(line, column, "no text")
            self._refuse(line, column, f"{shown(value)} is no text, found", "write it in quotes")
        text = value.strip()
        if not text:
            self._refuse(line, column, "no text")
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
                with picture.stored() as file:
                    return file.read()
        except OSError as error:
            fault = f"cannot be read: {one_line(error.strerror or error)}"
        except UserError as error:
            refuse(self.source, line, f"picture {error}")
        refuse(self.source, line, f"picture {shown(without_credentials(value), 200)} {fault}")

    @property
    def _begins(self) -> bool:
        """Whether rows with a picture are drawn from it."""
        return self.strength is not None or "strength" in self.own

    def _beginning(self, line: int, own: RowSettings, image: bytes | None) -> RowSettings:
        """The row's settings with its strength, where it has a picture to begin with."""
        if image is None:
            if own.strength is not None:
                refuse(
                    self.source,
                    line,
                    f"strength {own.strength:g} is of a picture, and the row has none in column "
                    f"{shown(self.image)}; give one, or empty the cell",
                )
            return own
        if own.strength is None and self.strength is None:
            refuse(
                self.source,
                line,
                f"it has a picture in column {shown(self.image)} and no strength; give one, or "
                "prompts.strength for all rows",
            )
        return own if own.strength is not None else own._replace(strength=self.strength)

    def _own(self, line: int, row: Row) -> RowSettings:
        """What the row says of its own pictures; an empty cell says nothing."""
        found: dict[str, Any] = {}
        for setting, column in self.own.items():
            value = row.get(column)
            if _is_empty(value):
                continue
            if setting == "negative_prompt":
                found[setting] = self._text(line, column, value)
                continue
            wanted, read = _SETTINGS[setting]
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
        cells = ((name, row.get(name)) for name in self.kept)
        kept = {name: None if _is_nan(value) else value for name, value in cells}
        try:
            text = json.dumps(kept, ensure_ascii=False, default=_as_text)
        except (ValueError, RecursionError):
            text = "\0"
        if _odd(text) or len(text) > LONGEST_TEXT:
            refuse(self.source, line, "its columns cannot all be kept; name fewer (prompts.keep)")
        return text

    def _refuse(self, line: int, column: str | None, fault: str, do: str = "") -> NoReturn:
        refuse(self.source, line, f"{fault} in column {shown(column)}" + (f"; {do}" if do else ""))


def _like(row: Row, name: str) -> str | None:
    """The row's column of this name, or else of one that differs in case and blanks alone."""
    if name in row:
        return name
    plain = name.strip().casefold()
    return next((column for column in row if column.strip().casefold() == plain), None)


def _is_nan(value: Any) -> bool:
    """As pandas writes an empty cell among numbers."""
    return isinstance(value, float) and math.isnan(value)


def _is_empty(value: Any) -> bool:
    return value is None or _is_nan(value) or (isinstance(value, str) and not value.strip())


def _whole(low: int, high: int, multiple: int = 1) -> Callable[[Any], int | None]:
    """Reads an integer between the two, a multiple of something; None: it is none."""

    def read(value: Any) -> int | None:
        number = _number(value)
        if number is None or not low <= number <= high or number % multiple:
            return None
        return int(number)

    return read


def _number(value: Any) -> int | float | None:
    """A number of a cell, which may be text (``7``, or ``7.0`` as pandas writes such columns)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if isinstance(value, int):
        return value
    return number if math.isfinite(number) else None


def _scale(value: Any) -> float | None:
    number = _number(value)
    return None if number is None or number < 0 else float(number)


def _strength(value: Any) -> float | None:
    number = _number(value)
    return float(number) if number is not None and 0 < number <= 1 else None


_PIXELS = ("a multiple of 8, in pixels", _whole(8, 1 << 16, multiple=8))
_SETTINGS: dict[str, tuple[str, Callable[[Any], int | float | None]]] = {
    "seed": ("an integer from 0 to 2**63 - 1", _whole(0, (1 << 63) - 1)),
    "guidance_scale": ("a number of at least 0", _scale),
    "height": _PIXELS,
    "width": _PIXELS,
    "steps": ("an integer from 1 to 1000", _whole(1, 1000)),
    "strength": ("a number above 0 and at most 1", _strength),
}


def _as_text(value: Any) -> str:
    """What JSON has no form for: a date, or bytes by their number."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _names(row: Row) -> str:
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


def _made_id(place: int, text: str) -> str:
    """An id from content and place: stable for the set, and told apart when texts repeat."""
    return f"{str(place).zfill(8)}-{blake2b(text.encode(), digest_size=6).hexdigest()}"
