"""Prompt sets in one JSON file, in the shapes in which they are published."""

from collections.abc import Callable, Collection, Iterator
from typing import Any, TextIO

from tgate_batch.errors import shown
from tgate_batch.prompts.json_stream import JsonFault, JsonStream, NameTwice, made_object

Row = tuple[int, dict[str, Any]]
SHAPES = (
    "a list of texts or objects, an object of texts or objects by id, a list of 'annotations' as "
    "COCO captions have, 'images' with 'sentences' (Karpathy's split), or JSON lines"
)
_LISTS = ("annotations", "prompts", "data", "rows")  # names whose list holds the rows
_SPLIT = "images"
_MOST_WAITING = 256  # members that are read before an object's shape is known


class ShapeFault(ValueError):
    """JSON that is no prompt set: the message is why."""


class RowFault(ValueError):
    """A row that is no prompt: the message is why. ``row``: its number, from 1."""

    def __init__(self, row: int, why: str):
        super().__init__(why)
        self.row = row


def json_rows(file: TextIO, is_row: Callable[[Collection[str]], bool]) -> Iterator[Row]:
    """The rows of a JSON text. ``is_row``: returns True for an object's names if it is a row.

    Raises JsonFault for what is no JSON, ShapeFault for what is no prompt set, and RowFault for a
    row that is no text and no object.
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
        raise JsonFault("more stands behind its end")


def _rows(elements: Iterator[Any]) -> Iterator[Row]:
    for number, value in enumerate(elements, start=1):
        yield number, _row(number, value)


def _row(number: int, value: Any) -> dict[str, Any]:
    if isinstance(value, NameTwice):
        raise RowFault(number, "a name stands twice in its JSON object; keep one of the two")
    if type(value) is str:
        return {"text": value}
    if type(value) is not dict:
        raise RowFault(number, f"not a JSON object but {shown(value)}")
    return value


def _rows_of_object(stream: JsonStream, is_row: Callable[[Collection[str]], bool]) -> Iterator[Row]:
    waiting: list[tuple[str, Any]] = []
    by_id = found = has_lists = False
    number = 0
    for name in stream.members():
        if stream.next_mark() == "[" and not by_id:
            has_lists = True
            if found or not (name in _LISTS or name == _SPLIT):
                for _ in stream.aside():
                    pass
                continue
            for each in _split(stream.aside()) if name == _SPLIT else _rows(stream.elements()):
                found = True
                yield each
            continue
        value = stream.value()
        if found:
            continue
        waiting.append((name, value))
        by_id = by_id or len(waiting) > _MOST_WAITING
        if by_id:
            for member in waiting:
                number += 1
                yield number, _named_row(number, *member)
            waiting.clear()
    if found or by_id:
        return
    row = made_object(waiting)
    if stream.next_mark() == "{" or is_row(row):
        yield 1, _row(1, row)
        yield from _lines(stream)
    elif has_lists or not waiting:
        raise ShapeFault(f"has no list of 'annotations', and is none of {SHAPES}")
    else:
        for number, member in enumerate(waiting, start=1):
            yield number, _named_row(number, *member)


def _lines(stream: JsonStream) -> Iterator[Row]:
    """The objects that follow the first, without a list around them."""
    number = 1
    while stream.next_mark() == "{":
        number += 1
        yield number, _row(number, stream.value())


def _named_row(number: int, name: str, value: Any) -> dict[str, Any]:
    return _row(number, value) | {"id": name}


def _split(images: Iterator[Any]) -> Iterator[Row]:
    """The sentences of Karpathy's images; none of images without sentences, as COCO's are."""
    number = 0
    for image in images:
        sentences = image.get("sentences") if type(image) is dict else None
        if not isinstance(sentences, list):
            continue
        for sentence in sentences:
            number += 1
            row = _row(number, sentence)
            named = {"id": row.get("sentid"), "caption": row.get("raw")}
            of = {"image_id": image.get("cocoid", image.get("imgid")), "split": image.get("split")}
            yield number, {key: value for key, value in (named | of).items() if value is not None}
