"""JSON read piece by piece: a file of any size, of which no value is larger than a bound."""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

LONGEST = 16 << 20  # characters of a value
MOST_VALUES = 250_000  # in a value
_MOST_ASIDE = 1_000_000  # elements of a list that is passed over; COCO has 123,287 images
_CHUNK = 1 << 20  # characters
_BLANKS = re.compile(r"[ \t\n\r]*")


class JsonFault(ValueError):
    """JSON that cannot be read: the message is why. ``line``: where, from 1; None: not known."""

    def __init__(self, why: str, line: int | None = None):
        super().__init__(why)
        self.line = line


class NameTwice(dict):
    """A JSON object in which a name stands twice."""


def made_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its names and values; a ``NameTwice`` if a name is repeated."""
    made = dict(pairs)
    return made if len(made) == len(pairs) else NameTwice(pairs)


_decode = json.JSONDecoder().decode
_strict = json.JSONDecoder(object_pairs_hook=made_object)  # slower by a half


def decoded(text: str) -> Any:
    """The value of a line of JSON; raises JsonFault."""
    if len(text) >= LONGEST:
        raise JsonFault(f"a line of more than {LONGEST:,} characters")
    _check_values(text)
    try:
        value = _decode(text)
        if type(value) is dict and text.count(":") != len(value):  # more than names and values
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
    return "it holds a number of too many digits"


class JsonStream:
    """A JSON text, read value after value. Every method raises JsonFault for what is none."""

    def __init__(self, file: TextIO):
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._lines_before = 0

    def next_mark(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def take(self, mark: str) -> None:
        """Passes over a mark that has to be the next."""
        if self.next_mark() != mark:
            self._refuse(f"Expecting {mark!r}")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole."""
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
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            self._check_bounds()
            self._read_more()

    def elements(self) -> Iterator[Any]:
        """The elements of the list that is next."""
        for _ in self._members("[", "]"):
            yield self.value()

    def members(self) -> Iterator[str]:
        """The names of the object that is next; the caller reads each name's value."""
        for _ in self._members("{", "}"):
            if self.next_mark() != '"':
                self._refuse("Expecting property name enclosed in double quotes")
            name = self.value()
            self.take(":")
            yield name

    def aside(self) -> Iterator[Any]:
        """The elements of the list that is next, which holds no rows: only so many."""
        for number, value in enumerate(self.elements()):
            if number == _MOST_ASIDE:
                self._refuse(f"a list of more than {_MOST_ASIDE:,} values that are no prompts")
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
        """Reads a chunk, and forgets what was passed; returns False at the end."""
        chunk = self._file.read(_CHUNK)
        self._ended = not chunk
        self._lines_before += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _check_bounds(self) -> None:
        """Refuses the value at hand, all of what was read, if it is too large to go on."""
        if len(self._text) - self._at >= LONGEST:
            self._refuse(f"a value of more than {LONGEST:,} characters")
        try:
            _check_values(self._text, self._at)
        except JsonFault as error:
            self._refuse(str(error))

    def _refuse(self, why: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        raise JsonFault(why, 1 + self._lines_before + self._text.count("\n", 0, at))
