"""Files of prompts as rows of columns: txt, csv, tsv, jsonl, parquet, COCO captions json.

A further format is one function from a path to rows, and its suffix in ``READERS``.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.errors import UserError

Row = tuple[int, dict[str, Any]]  # where the row stands (counted from 1), its columns
Reader = Callable[[Path], Iterator[Row]]


def rows(path: Path) -> Iterator[Row]:
    """Streams a file's rows. Raises UserError, naming the file, where it cannot be read."""
    try:
        reader = READERS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(READERS)
        raise UserError(
            f"prompts file {path}: unknown kind {path.suffix!r}; one of {known}"
        ) from None
    if not path.is_file():
        raise UserError(f"prompts file {path} does not exist")
    return _guarded(path, reader)


def _guarded(path: Path, reader: Reader) -> Iterator[Row]:
    """Turns what parsers raise into one line that names the file."""
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompts file {path} is not UTF-8 (byte {error.object[error.start]:#04x}); "
            "convert it, e.g. with iconv -t utf-8"
        ) from None
    except (csv.Error, json.JSONDecodeError, pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"prompts file {path} cannot be read: {reason}") from None


def _text_rows(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield line, {"text": text}


def _delimited_rows(delimiter: str) -> Reader:
    def rows(path: Path) -> Iterator[Row]:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True, restkey="(more)")
            for row in reader:
                yield reader.line_num, row

    return rows


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            row = json.loads(text)
            if not isinstance(row, dict):
                raise UserError(f"prompts file {path}, row {line}: not a JSON object")
            yield line, row


def _parquet_rows(path: Path) -> Iterator[Row]:
    position = itertools.count(1)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield next(position), row


def _coco_rows(path: Path) -> Iterator[Row]:
    """COCO's captions file; an annotation's own id, since a picture has five captions."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    annotations = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(annotations, list) or not all(isinstance(row, dict) for row in annotations):
        raise UserError(f"prompts file {path} has no list of 'annotations' as COCO captions have")
    yield from enumerate(annotations, start=1)


READERS: dict[str, Reader] = {
    ".txt": _text_rows,
    ".csv": _delimited_rows(","),
    ".tsv": _delimited_rows("\t"),
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".json": _coco_rows,
}
