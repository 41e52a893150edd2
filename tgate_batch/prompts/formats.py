"""Reads prompt files as rows of columns: txt, csv, tsv, jsonl, parquet, json.

All except Parquet may be compressed by gzip (``.csv.gz``), and are decompressed as they are read.
The size of each piece is checked before it is parsed. To add a format, write a function from a
source to rows, and add its suffix to ``READERS``.
"""

import codecs
import csv
import io
import itertools
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.prompts import webui
from tgate_batch.prompts.json_sets import RowFault, ShapeFault, json_rows
from tgate_batch.prompts.json_stream import (
    LONGEST,
    MOST_VALUES,
    JsonFault,
    NameTwice,
    decoded,
)
from tgate_batch.prompts.source import PromptFile, check_expansion

Row = tuple[int, dict[str, Any]]  # the row's number (from 1), its columns
# Chooses the columns to read among those of a file; None if none of them has prompts.
Pick = Callable[[Collection[str]], Collection[str] | None]
Reader = Callable[[PromptFile, Pick], Iterator[Row]]

_ROWS_AT_ONCE = 256
_MOST_BLANK = 100_000  # lines
_OTHER_FORMATS = {  # the first bytes of files that are often given under a wrong name
    b"\x1f\x8b": "is compressed by gzip. Fix: give it the suffix .gz",
    b"PK\x03\x04": "is a zip archive or a workbook. Fix: save it as CSV",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd. Fix: unpack it",
    b"BZh": "is compressed by bzip2. Fix: unpack it",
    b"PAR1": "is Parquet. Fix: give it the suffix .parquet",
}
_ENCODINGS = {  # by a file's first bytes; the longer marks first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATORS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r"sep=([,;\t])\s*", re.IGNORECASE)  # that spreadsheets write


def rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
    """Streams a file's rows, with at least the columns that ``pick`` chooses.

    Raises UserError, naming the file, if it cannot be read.
    """
    try:
        reader = READERS[source.suffix]
    except KeyError:
        raise UserError(
            f"prompts file {source}: unknown suffix {shown(source.suffix)}. Fix: use one of {KNOWN}"
        ) from None
    if source.packed and reader is _parquet_rows:
        raise UserError(
            f"prompts file {source}: Parquet is compressed internally. Fix: unpack the file"
        )
    if fault := source.fault():
        raise UserError(f"prompts file {source} {fault}")
    return _guarded(source, reader, pick)


def refuse(source: PromptFile, row: int, fault: str) -> NoReturn:
    """Raises the UserError of an invalid row."""
    raise UserError(f"prompts file {source}, row {row}: {fault}")


def _guarded(source: PromptFile, reader: Reader, pick: Pick) -> Iterator[Row]:
    """Converts the errors of parsers into a UserError that names the file."""
    try:
        yield from reader(source, pick)
    except UnicodeDecodeError as error:
        _refuse_encoding(source, error.encoding)
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise UserError(f"prompts file {source} cannot be read: {one_line(error)}") from None


def _refuse_encoding(source: PromptFile, encoding: str) -> NoReturn:
    """Raises the UserError of a wrong encoding, with the first line that is not UTF-8."""
    fix = "Fix: convert the file, e.g. with iconv -t utf-8"
    if encoding.startswith("utf-8"):
        with source.open() as file:
            for number, line in enumerate(io.BufferedReader(file), start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    refuse(source, number, f"not UTF-8 (byte {line[error.start]:#04x}). {fix}")
    raise UserError(f"prompts file {source} is not {encoding.upper()}. {fix}")


def _text(source: PromptFile, newline: str | None = None) -> io.TextIOWrapper:
    """Opens a file as UTF-8, or by its byte order mark; raises UserError for another format."""
    with source.open() as file:
        beginning = file.read(4)
    for magic, fault in _OTHER_FORMATS.items():
        if beginning.startswith(magic):
            raise UserError(f"prompts file {source} {fault}")
    encodings = (name for mark, name in _ENCODINGS.items() if beginning.startswith(mark))
    return io.TextIOWrapper(source.open(), encoding=next(encodings, "utf-8-sig"), newline=newline)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """Yields the lines of a file; very long lines in parts, so that they do not fill the memory."""
    blank = 0
    for line in iter(partial(file.readline, LONGEST), ""):
        blank = blank + 1 if line.isspace() else 0
        if blank > _MOST_BLANK:
            raise OSError(f"more than {_MOST_BLANK:,} consecutive blank lines")
        yield line


def _text_rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
    """Yields one prompt per line, or the rows of a table with tab-separated columns.

    The only prompt of a file in a folder or pattern gets the file's name as its id.
    """
    with _text(source, newline="") as file:
        numbered = enumerate(_lines(file), start=1)
        texts = ((line, text) for line, text in numbered if not text.isspace())
        first = list(itertools.islice(texts, 2))
        if first and "\t" in first[0][1].strip():
            if pick(_cells(first[0][1], "\t")) is None:
                refuse(
                    source,
                    first[0][0],
                    "the line has a tab, and no column is named like a caption. Fix: begin the "
                    "file with a line of names (id, caption), or replace the tabs by blanks",
                )
            lines = itertools.chain((text for _, text in first), (text for _, text in numbered))
            yield from _table(source, lines, "\t", first[0][0] - 1)
            return
        name = source.member if len(first) == 1 else ""
        for line, text in itertools.chain(first, texts):
            try:
                row = webui.options(text) if webui.is_options(text) else {"text": text}
            except ValueError as error:
                refuse(source, line, str(error))
            yield line, ({"id": name} | row if name else row)


def _delimited_rows(usual: str) -> Reader:
    """Returns the reader of a table with the separator of its header, by default ``usual``."""

    def rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
        with _text(source, newline="") as file:
            lines = _lines(file)
            header = next(lines, "")
            skipped = 0
            if match := _SEPARATOR_LINE.fullmatch(header):
                header, skipped = next(lines, ""), 1
            separators = dict.fromkeys((match[1] if match else usual, usual, *_SEPARATORS))
            fitting = (one for one in separators if pick(_cells(header, one)) is not None)
            separator = next(fitting, usual)
            yield from _table(source, itertools.chain([header], lines), separator, skipped)

    return rows


def _cells(line: str, separator: str) -> list[str]:
    """Returns the cells of one line; none if it is not a complete row."""
    if line.count(separator) > MOST_VALUES:
        return []
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def _table(
    source: PromptFile, content: Iterable[str], separator: str, skipped: int
) -> Iterator[Row]:
    lines = _Counted(source, content, separator)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    columns: list[str] | None = None
    line = skipped
    try:
        for cells in reader if separator != "\t" else _tabbed(reader, lines):
            line = reader.line_num + skipped
            lines.begin_row()
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
                    f"the header has {len(columns)} columns and this row {len(cells)}. Fix: put "
                    f"cells that contain {separator!r} or a line break in quotes",
                )
    except csv.Error as error:
        reason = one_line(error)
        if "field limit" in reason:
            reason = f"a cell of more than {csv.field_size_limit():,} characters"
        refuse(source, line + 1, f"cannot be read: {reason} (an unclosed quote?)")


class _Counted:
    """Yields lines and keeps the last one; refuses a row with too many cells before parsing."""

    def __init__(self, source: PromptFile, lines: Iterable[str], separator: str):
        self._source = source
        self._lines = iter(lines)
        self._separator = separator
        self._cells = self._number = 0
        self.last = ""

    def begin_row(self) -> None:
        self._cells = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last = next(self._lines)
        self._number += 1
        self._cells += self.last.count(self._separator)
        if self._cells > MOST_VALUES:
            refuse(self._source, self._number, f"more than {MOST_VALUES:,} cells")
        return self.last


def _tabbed(reader: Any, lines: _Counted) -> Iterator[list[str]]:
    """Yields the rows of a TSV; quotes that do not enclose a whole cell are part of the text.

    Most TSV files have no quoting (PartiPrompts), and a cell may begin with a quoted word.
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


def _check_names(source: PromptFile, columns: Sequence[str]) -> None:
    """Raises UserError for two columns of one name; columns without a name are ignored."""
    known = set()
    for column in filter(None, columns):
        if column in known:
            raise UserError(
                f"prompts file {source} has two columns {shown(column)}. Fix: rename one"
            )
        known.add(column)


def _jsonl_rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
    with _text(source) as file:
        for line, text in enumerate(_lines(file), start=1):
            if text.isspace():
                continue
            try:
                row = decoded(text)
            except JsonFault as error:
                refuse(source, line, f"cannot be read as JSON: {one_line(error)}")
            if isinstance(row, NameTwice):
                refuse(source, line, NameTwice.FAULT)
            if type(row) is not dict:
                refuse(source, line, f"not a JSON object but {shown(row)}")
            yield line, row


def _json_rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
    with _text(source) as file:
        try:
            yield from json_rows(file, lambda names: pick(names) is not None)
        except JsonFault as error:
            where = f", line {error.line}" if error.line else ""
            raise UserError(
                f"prompts file {source}{where}: cannot be read as JSON: {one_line(error)}"
            ) from None
        except ShapeFault as error:
            raise UserError(f"prompts file {source} {error}") from None
        except RowFault as error:
            refuse(source, error.row, str(error))


def _parquet_rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
    position = 0
    with source.open_anywhere() as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        _check_names(source, names)
        columns = list(pick(names) or names)
        _check_sizes(source, file, columns)
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    return
                read = batch.to_pylist()
            except (pa.ArrowException, ValueError, OverflowError, OSError, MemoryError) as error:
                reason = one_line(error) or type(error).__name__
                refuse(source, position + 1, f"cannot be read (in or after it): {reason}")
            for row in read:
                position += 1
                yield position, row


def _check_sizes(source: PromptFile, file: pq.ParquetFile, columns: Collection[str]) -> None:
    """Refuses a row group whose columns decompress to far more than their size in the file."""
    read = set(columns)
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for index in range(group.num_columns):
            part = group.column(index)
            if part.path_in_schema in read or part.path_in_schema.partition(".")[0] in read:
                check_expansion(part.total_compressed_size, part.total_uncompressed_size)


READERS: dict[str, Reader] = {
    ".txt": _text_rows,
    ".csv": _delimited_rows(","),
    ".tsv": _delimited_rows("\t"),
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".json": _json_rows,
}
KNOWN = f"{', '.join(READERS)}, also with .gz"
