"""Reads prompt sets in one JSON file, in the shapes in which they are published."""

import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any, TextIO

from tgate_batch.errors import shown
from tgate_batch.prompts.json_stream import JsonFault, JsonStream, NameTwice, made_object

Row = tuple[int, dict[str, Any]]
SHAPES = (
    "a list of texts or objects, an object of texts or objects by id, a list of 'annotations' "
    "(COCO's captions), 'images' with 'sentences' (Karpathy's split), or JSON lines"
)
_LISTS = ("annotations", "prompts", "data", "rows")  # names of lists of rows
_SPLIT = "images"
_MOST_WAITING = 256  # members that are read before an object's shape is known


class ShapeFault(ValueError):
    """The JSON is not a prompt set; the message is the reason."""


class RowFault(ValueError):
    """A row is not a prompt; the message is the reason. ``row``: its number, from 1."""

    def __init__(self, row: int, why: str):
        super().__init__(why)
        self.row = row


def json_rows(file: TextIO, is_row: Callable[[Collection[str]], bool]) -> Iterator[Row]:
    """Yields the rows of a JSON text; ``is_row`` returns True for the names of a row's object.

    Raises JsonFault for invalid JSON, ShapeFault if it is not a prompt set, and RowFault for a row
    that is neither text nor an object.
    """
    stream = JsonStream(file)
    if stream.next_mark() == "[":
        yield from _rows(stream.elements())
    elif stream.next_mark() == "{":
        yield from _rows_of_object(stream, is_row)
    elif stream.next_mark():
        stream.value()
        raise ShapeFault(f"is none of {SHAPES}")
    if stream.next_mark():
        raise JsonFault("there is more text after its end")


def _rows(elements: Iterator[Any]) -> Iterator[Row]:
    for number, value in enumerate(elements, start=1):
        yield number, _row(number, value)


def _row(number: int, value: Any) -> dict[str, Any]:
    if isinstance(value, NameTwice):
        raise RowFault(number, NameTwice.FAULT)
    if type(value) is str:
        return {"text": value}
    if type(value) is not dict:
        raise RowFault(number, f"not a JSON object but {shown(value)}")
    return value


def _rows_of_object(stream: JsonStream, is_row: Callable[[Collection[str]], bool]) -> Iterator[Row]:
    waiting: list[tuple[str, Any]] = []
    by_id = has_rows = has_lists = False
    number = 0
    for name in stream.members():
        if stream.next_mark() == "[" and not by_id:
            has_lists = True
            if has_rows or not (name in _LISTS or name == _SPLIT):
                for _ in stream.skipped():
                    pass
                continue
            for each in _split(stream.skipped()) if name == _SPLIT else _rows(stream.elements()):
                has_rows = True
                yield each
            continue
        value = stream.value()
        if has_rows:
            continue
        waiting.append((name, value))
        by_id = by_id or len(waiting) > _MOST_WAITING
        if by_id:
            for member in waiting:
                number += 1
                yield number, _named_row(number, *member)
            waiting.clear()
    if has_rows or by_id:
        return
    row = made_object(waiting)
    if stream.next_mark() == "{" or is_row(row):
        yield 1, _row(1, row)
        for number in itertools.count(2):
            if stream.next_mark() != "{":
                return
            yield number, _row(number, stream.value())
    elif has_lists or not waiting:
        raise ShapeFault(f"has no list of 'annotations', and is none of {SHAPES}")
    else:
        for number, member in enumerate(waiting, start=1):
            yield number, _named_row(number, *member)


def _named_row(number: int, name: str, value: Any) -> dict[str, Any]:
    return _row(number, value) | {"id": name}


def _split(images: Iterator[Any]) -> Iterator[Row]:
    """Yields the sentences of Karpathy's images; none for COCO's, which have no sentences."""
    number = 0
    for image in images:
        sentences = image.get("sentences") if type(image) is dict else None
        if not isinstance(sentences, list):
            continue
        for sentence in sentences:
            number += 1
            row = _row(number, sentence)
            columns = {
                "id": row.get("sentid"),
                "caption": row.get("raw"),
                "image_id": image.get("cocoid", image.get("imgid")),
                "split": image.get("split"),
            }
            yield number, {key: value for key, value in columns.items() if value is not None}
