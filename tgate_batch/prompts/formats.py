"""Files of prompts as rows of columns: txt, csv, tsv, jsonl, parquet, json.

All but Parquet may be compressed by gzip (``.csv.gz``), and are unpacked as they are read. What is
read at a time is bounded before it is parsed. A further format is one function from a source to
rows, and its suffix in ``READERS``.
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

Row = tuple[int, dict[str, Any]]  # where the row stands (counted from 1), its columns
# The columns that are to be read, of all that a file has; None: its prompts are in none of them.
Pick = Callable[[Collection[str]], Collection[str] | None]
Reader = Callable[[PromptFile, Pick], Iterator[Row]]

_ROWS_AT_ONCE = 256
_MOST_BLANK = 100_000  # lines
_OTHER_KINDS = {  # how files begin that are often given under another name
    b"\x1f\x8b": "is compressed by gzip; give it the suffix .gz",
    b"PK\x03\x04": "is a zip archive or a workbook; save it as CSV first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"PAR1": "is Parquet; give it the suffix .parquet",
}
_ENCODINGS = {  # by a file's first bytes; the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATORS = (",", ";", "\t")
_SEPARATOR_LINE = re.compile(r"sep=([,;\t])\s*", re.IGNORECASE)  # that spreadsheets write


def rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
    """Streams a file's rows, at least with the columns that ``pick`` chooses of those it has.

    Raises UserError, naming the file, where it cannot be read.
    """
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
    return _guarded(source, reader, pick)


def refuse(source: PromptFile, row: int, fault: str) -> NoReturn:
    """Raises the UserError of a row that cannot be used."""
    raise UserError(f"prompts file {source}, row {row}: {fault}")


def _guarded(source: PromptFile, reader: Reader, pick: Pick) -> Iterator[Row]:
    """Turns what parsers raise into one line that names the file."""
    try:
        yield from reader(source, pick)
    except UnicodeDecodeError as error:
        _refuse_encoding(source, error.encoding)
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise UserError(f"prompts file {source} cannot be read: {one_line(error)}") from None


def _refuse_encoding(source: PromptFile, encoding: str) -> NoReturn:
    """Finds the first line that is not UTF-8."""
    if encoding.startswith("utf-8"):
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
    name = encoding.upper()
    raise UserError(f"prompts file {source} is not {name}; convert it, e.g. with iconv -t utf-8")


def _text(source: PromptFile, newline: str | None = None) -> io.TextIOWrapper:
    """The file as text: UTF-8, or what its byte order mark says. Refuses other kinds of file."""
    with source.open() as file:
        beginning = file.read(4)
    for magic, kind in _OTHER_KINDS.items():
        if beginning.startswith(magic):
            raise UserError(f"prompts file {source} {kind}")
    found = (name for mark, name in _ENCODINGS.items() if beginning.startswith(mark))
    return io.TextIOWrapper(source.open(), encoding=next(found, "utf-8-sig"), newline=newline)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a file; one without end comes in parts, so that it does not fill the memory."""
    blank = 0
    for line in iter(partial(file.readline, LONGEST), ""):
        blank = blank + 1 if line.isspace() else 0
        if blank > _MOST_BLANK:
            raise OSError(f"more than {_MOST_BLANK:,} blank lines one after the other")
        yield line


def _text_rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
    """A prompt a line, or a table whose columns are parted by tabs.

    A file of a folder or pattern that holds one prompt alone gives it its name as id.
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
                    "a tab parts its line, and no column is named like a caption. Fix: begin the "
                    "file with a line of names (id, caption), or replace the tabs by blanks",
                )
            lines = itertools.chain((text for _, text in first), (text for _, text in numbered))
            yield from _table(source, lines, "\t", first[0][0] - 1)
            return
        name = source.member if len(first) == 1 else ""
        for line, text in itertools.chain(first, texts):
            row = _text_row(source, line, text)
            yield line, ({"id": name} | row if name else row)


def _text_row(source: PromptFile, line: int, text: str) -> dict[str, Any]:
    if not webui.is_options(text):
        return {"text": text}
    try:
        return webui.options(text)
    except ValueError as error:
        refuse(source, line, str(error))


def _delimited_rows(usual: str) -> Reader:
    """The reader of a table; its cells are parted by ``usual``, or by what parts its header."""

    def rows(source: PromptFile, pick: Pick) -> Iterator[Row]:
        with _text(source, newline="") as file:
            lines = _lines(file)
            header = next(lines, "")
            skipped = 0
            if said := _SEPARATOR_LINE.fullmatch(header):
                header, skipped = next(lines, ""), 1
            separators = dict.fromkeys((said[1] if said else usual, usual, *_SEPARATORS))
            fitting = (one for one in separators if pick(_cells(header, one)) is not None)
            separator = next(fitting, usual)
            yield from _table(source, itertools.chain([header], lines), separator, skipped)

    return rows


def _cells(line: str, separator: str) -> list[str]:
    """The cells of one line; none of a line that is no row by itself."""
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
                    f"the header has {len(columns)} columns and this row {len(cells)}; "
                    f"a cell that holds {separator!r} or a line break stands in quotes",
                )
    except csv.Error as error:
        reason = one_line(error)
        if "field limit" in reason:
            reason = f"a cell of more than {csv.field_size_limit():,} characters"
        refuse(source, line + 1, f"cannot be read: {reason} (a quote that is not closed?)")


class _Counted:
    """Passes lines on, and keeps the last; refuses a row of too many cells before it is parsed."""

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


def _check_names(source: PromptFile, columns: Sequence[str]) -> None:
    """Refuses two columns of one name; columns without a name are passed over."""
    named = set()
    for column in filter(None, columns):
        if column in named:
            raise UserError(
                f"prompts file {source} has two columns {shown(column)}; rename one or remove it"
            )
        named.add(column)


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
                refuse(source, line, "a name stands twice in its JSON object; keep one of the two")
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
                found = batch.to_pylist()
            except (pa.ArrowException, ValueError, OverflowError, OSError, MemoryError) as error:
                reason = one_line(error) or type(error).__name__
                refuse(source, position + 1, f"cannot be read (in or after it): {reason}")
            for row in found:
                position += 1
                yield position, row


def _check_sizes(source: PromptFile, file: pq.ParquetFile, columns: Collection[str]) -> None:
    """Refuses a row group whose columns unpack to far more than they take in the file."""
    read = set(columns)
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for place in range(group.num_columns):
            part = group.column(place)
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
