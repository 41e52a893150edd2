"""Reads JSON piece by piece: files of any size, with a limit on the size of a value."""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

LONGEST = 16 << 20  # characters of a value
MOST_VALUES = 250_000  # in a value
_MOST_SKIPPED = 1_000_000  # elements of a list without rows; COCO has 123,287 images
_CHUNK = 1 << 20  # characters
_BLANKS = re.compile(r"[ \t\n\r]*")


class JsonFault(ValueError):
    """JSON cannot be read; the message is the reason. ``line``: from 1; None if unknown."""

    def __init__(self, why: str, line: int | None = None):
        super().__init__(why)
        self.line = line


class NameTwice(dict):
    """A JSON object with a repeated name."""

    FAULT = "a name is repeated in its JSON object. Fix: keep one of the two"


def made_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object from its names and values; a ``NameTwice`` if a name is repeated."""
    made = dict(pairs)
    return made if len(made) == len(pairs) else NameTwice(pairs)


_decode = json.JSONDecoder().decode
_strict = json.JSONDecoder(object_pairs_hook=made_object)  # takes 1.5 times as long


def decoded(text: str) -> Any:
    """Returns the value of a line of JSON; raises JsonFault."""
    if len(text) >= LONGEST:
        raise JsonFault(f"a line of more than {LONGEST:,} characters")
    _check_values(text)
    try:
        value = _decode(text)
        if type(value) is dict and text.count(":") != len(value):  # a repeated name, or a : in text
            value = _strict.decode(text)
    except (ValueError, RecursionError) as error:
        raise JsonFault(_why(error)) from None
    return value


def _check_values(text: str, start: int = 0) -> None:
    if len(text) - start > MOST_VALUES:
        values = sum(text.count(mark, start) for mark in ",[{")
        if values > MOST_VALUES:
            raise JsonFault(f"more than {MOST_VALUES:,} values in one")


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "it has a number with too many digits"


class JsonStream:
    """A JSON text, read value by value; every method raises JsonFault for invalid JSON."""

    def __init__(self, file: TextIO):
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._lines_before = 0

    def next_mark(self) -> str:
        """Returns the next character that is not blank; empty at the end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def take(self, mark: str) -> None:
        """Skips a mark, which must be the next character."""
        if self.next_mark() != mark:
            self._refuse(f"Expecting {mark!r}")
        self._at += 1

    def value(self) -> Any:
        """Returns the next value."""
        if not self.next_mark():
            self._refuse("Expecting value")
        while True:
            try:
                value, end = _strict.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    self._refuse(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                self._refuse(_why(error))
            else:
                if end < len(self._text) or self._ended:  # else a number may continue
                    self._at = end
                    return value
            self._check_bounds()
            self._read_more()

    def elements(self) -> Iterator[Any]:
        """Yields the elements of the next list."""
        for _ in self._members("[", "]"):
            yield self.value()

    def members(self) -> Iterator[str]:
        """Yields the names of the next object; the caller reads the value of each."""
        for _ in self._members("{", "}"):
            if self.next_mark() != '"':
                self._refuse("Expecting property name enclosed in double quotes")
            name = self.value()
            self.take(":")
            yield name

    def skipped(self) -> Iterator[Any]:
        """Yields the elements of the next list, which has no rows; their number is limited."""
        for number, value in enumerate(self.elements()):
            if number == _MOST_SKIPPED:
                self._refuse(f"a list of more than {_MOST_SKIPPED:,} values that are not prompts")
            yield value

    def _members(self, opening: str, closing: str) -> Iterator[None]:
        self.take(opening)
        if self.next_mark() == closing:
            self._at += 1
            return
        while True:
            yield
            if (mark := self.next_mark()) not in (",", closing):
                self._refuse(f"Expecting ',' or {closing!r}")
            self._at += 1
            if mark == closing:
                return

    def _read_more(self) -> bool:
        """Reads a chunk and drops the consumed text; returns False at the end."""
        chunk = self._file.read(_CHUNK)
        self._ended = not chunk
        self._lines_before += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _check_bounds(self) -> None:
        """Refuses the current value, which is the whole remaining text, if it is too large."""
        if len(self._text) - self._at >= LONGEST:
            self._refuse(f"a value of more than {LONGEST:,} characters")
        try:
            _check_values(self._text, self._at)
        except JsonFault as error:
            self._refuse(str(error))

    def _refuse(self, why: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        raise JsonFault(why, 1 + self._lines_before + self._text.count("\n", 0, at))
