"""Files of prompts as rows of columns: txt, csv, tsv, jsonl, parquet, COCO captions json.

All but Parquet may be compressed by gzip (``.csv.gz``), and are unpacked as they are read. A
further format is one function from a source to rows, and its suffix in ``READERS``.
"""

import csv
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.prompts.source import Source

Row = tuple[int, dict[str, Any]]  # where the row stands (counted from 1), its columns
Reader = Callable[[Source], Iterator[Row]]

_LONGEST_LINE = 16 << 20  # characters
_ROWS_AT_ONCE = 1024
_OTHER_KINDS = {  # how files begin that are often given under another name
    b"\x1f\x8b": "is compressed by gzip; give it the suffix .gz",
    b"PK\x03\x04": "is a zip archive or a workbook; save it as CSV first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"PAR1": "is Parquet; give it the suffix .parquet",
}


def rows(source: Source) -> Iterator[Row]:
    """Streams a file's rows. Raises UserError, naming the file, where it cannot be read."""
    try:
        reader = READERS[source.suffix]
    except KeyError:
        raise UserError(
            f"prompts file {source}: unknown kind {shown(source.suffix)}; one of {KNOWN}"
        ) from None
    if source.packed and reader is _parquet_rows:
        raise UserError(f"prompts file {source}: Parquet is compressed within; unpack the file")
    if fault := source.fault():
        raise UserError(f"prompts file {source} {fault}")
    return _guarded(source, reader)


def refuse(source: Source, row: int, fault: str) -> NoReturn:
    """Raises the UserError of a row that cannot be used."""
    raise UserError(f"prompts file {source}, row {row}: {fault}")


def _guarded(source: Source, reader: Reader) -> Iterator[Row]:
    """Turns what parsers raise into one line that names the file."""
    try:
        if reader is not _parquet_rows:
            _check_beginning(source)
        yield from reader(source)
    except UnicodeDecodeError:
        _refuse_encoding(source)
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise UserError(f"prompts file {source} cannot be read: {one_line(error)}") from None


def _check_beginning(source: Source) -> None:
    with source.open() as file:
        beginning = file.read(4)
    for magic, kind in _OTHER_KINDS.items():
        if beginning.startswith(magic):
            raise UserError(f"prompts file {source} {kind}")


def _refuse_encoding(source: Source) -> NoReturn:
    """Finds the first line that is not UTF-8."""
    with source.open() as file:
        for number, line in enumerate(io.BufferedReader(file), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start]
                refuse(
                    source,
                    number,
                    f"not UTF-8 (byte {byte:#04x}); convert the file, e.g. with iconv -t utf-8",
                )
    raise UserError(f"prompts file {source} is not UTF-8; convert it, e.g. with iconv -t utf-8")


def _text(source: Source, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(source.open(), encoding="utf-8-sig", newline=newline)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a file; one without end comes in parts, so that it does not fill the memory."""
    return iter(partial(file.readline, _LONGEST_LINE), "")


def _text_rows(source: Source) -> Iterator[Row]:
    with _text(source) as file:
        for line, text in enumerate(_lines(file), start=1):
            if not text.isspace():
                yield line, {"text": text}


def _delimited_rows(delimiter: str) -> Reader:
    def rows(source: Source) -> Iterator[Row]:
        with _text(source, newline="") as file:
            lines = _Remembered(_lines(file))
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            columns: list[str] | None = None
            line = 0
            try:
                for cells in reader if delimiter == "," else _tabbed(reader, lines):
                    line = reader.line_num
                    if not cells:
                        continue
                    if columns is None:
                        columns = cells
                        _check_names(source, columns)
                    elif len(cells) == len(columns):
                        yield line, dict(zip(columns, cells))  # noqa: B905  they are as many
                    else:
                        refuse(
                            source,
                            line,
                            f"the header has {len(columns)} columns and this row {len(cells)}; "
                            f"a cell that holds {delimiter!r} or a line break stands in quotes",
                        )
            except csv.Error as error:
                reason = one_line(error)
                if "field limit" in reason:
                    reason = f"a cell of more than {csv.field_size_limit():,} characters"
                refuse(source, line + 1, f"cannot be read: {reason} (a quote that is not closed?)")

    return rows


class _Remembered:
    """Passes lines on, and keeps the last."""

    def __init__(self, lines: Iterator[str]):
        self._lines = lines
        self.last = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last = next(self._lines)
        return self.last


def _tabbed(reader: Any, lines: _Remembered) -> Iterator[list[str]]:
    """The rows of a tsv. Quotes enclose a whole cell; a row with others has them as they stand.

    Most tsv have no quoting at all (PartiPrompts), and a cell may begin with a quoted word.
    """
    while True:
        before = reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if reader.line_num != before + 1 or "expected after" not in str(error):
                raise
            cells = lines.last.rstrip("\r\n").split("\t")
        if cells is None:
            return
        yield cells


def _check_names(source: Source, columns: Sequence[str]) -> None:
    """Refuses two columns of one name; columns without a name are passed over."""
    named = set()
    for column in filter(None, columns):
        if column in named:
            raise UserError(
                f"prompts file {source} has two columns {shown(column)}; rename one or remove it"
            )
        named.add(column)


class _NameTwice(dict):
    """A JSON object in which a name stands twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _NameTwice(pairs)


_decode = json.JSONDecoder().decode
_decode_strictly = json.JSONDecoder(object_pairs_hook=_object).decode  # slower by a half


def _jsonl_rows(source: Source) -> Iterator[Row]:
    with _text(source) as file:
        for line, text in enumerate(_lines(file), start=1):
            if text.isspace():
                continue
            try:
                row = _decode(text)
                if type(row) is dict and text.count(":") != len(row):  # more than names and values
                    row = _decode_strictly(text)
            except (ValueError, RecursionError) as error:
                refuse(source, line, f"cannot be read as JSON: {_why(error, text)}")
            if type(row) is not dict:
                _refuse_object(source, line, row)
            yield line, row


def _why(error: ValueError | RecursionError, text: str) -> str:
    """Why JSON was not read, without the place in the text where that says nothing."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if len(text) == _LONGEST_LINE:
        return f"a line of more than {_LONGEST_LINE:,} characters"
    if isinstance(error, json.JSONDecodeError):
        return one_line(f"{error.msg} (column {error.colno})")
    return "it holds a number of too many digits"


def _refuse_object(source: Source, line: int, row: Any) -> NoReturn:
    if isinstance(row, _NameTwice):
        refuse(source, line, "a name stands twice in its JSON object; keep one of the two")
    refuse(source, line, f"not a JSON object but {shown(row)}")


def _parquet_rows(source: Source) -> Iterator[Row]:
    position = 0
    with source.open_anywhere() as stream, pq.ParquetFile(stream) as file:
        _check_names(source, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                found = batch.to_pylist()
            except (pa.ArrowException, ValueError, OverflowError, OSError, MemoryError) as error:
                reason = one_line(error) or type(error).__name__
                refuse(source, position + 1, f"cannot be read (in or after it): {reason}")
            for row in found:
                position += 1
                yield position, row


def _coco_rows(source: Source) -> Iterator[Row]:
    """COCO's captions file; an annotation's own id, since a picture has five captions."""
    with _text(source) as file:
        text = file.read()
    try:
        content = _decode_strictly(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"prompts file {source}{line}: cannot be read as JSON: {_why(error, text)}"
        ) from None
    annotations = content.get("annotations") if isinstance(content, dict) else content
    if isinstance(content, _NameTwice) or not isinstance(annotations, list):
        raise UserError(f"prompts file {source} has no list of 'annotations' as COCO captions have")
    for number, row in enumerate(annotations, start=1):
        if type(row) is not dict:
            _refuse_object(source, number, row)
        yield number, row


READERS: dict[str, Reader] = {
    ".txt": _text_rows,
    ".csv": _delimited_rows(","),
    ".tsv": _delimited_rows("\t"),
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".json": _coco_rows,
}
KNOWN = f"{', '.join(READERS)}, also with .gz"
