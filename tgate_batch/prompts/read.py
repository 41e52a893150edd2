"""Reads a prompt set (txt, csv, tsv, jsonl, parquet, COCO captions json) and cuts it into shards.

Everything streams: a prompt set is never held in memory, only its ids (to refuse duplicates).
"""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.records import Prompt, Shard

TEXT_COLUMNS = ("caption", "prompt", "text", "captions", "prompts", "TEXT")
ID_COLUMNS = ("prompt_id", "id", "image_id", "key", "uid")
IMAGE_COLUMNS = ("image", "image_path", "file_name")

Row = tuple[int, dict[str, Any]]  # where the row stands (counted from 1), its columns


def read(spec: Prompts) -> Iterator[Prompt]:
    """Streams the prompts of ``spec`` in file order, after ``offset``, at most ``limit``.

    Raises UserError for a file that is missing, empty, not UTF-8 or has no such column, and for
    a row without text. Duplicate ids are left to :func:`plan`.
    """
    path = Path(spec.path)
    try:
        reader = _READERS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_READERS)
        raise UserError(
            f"prompts file {path}: unknown kind {path.suffix!r}; one of {known}"
        ) from None
    if not path.is_file():
        raise UserError(f"prompts file {path} does not exist")
    stop = None if spec.limit is None else spec.offset + spec.limit
    rows = itertools.islice(_guarded(path, reader), spec.offset, stop)
    columns: _Columns | None = None
    for position, (line, row) in enumerate(rows, start=spec.offset):
        columns = columns or _Columns.choose(spec, path, row)
        yield columns.prompt(path, line, position, row)
    if columns is None:
        raise UserError(
            f"prompts file {path} holds no prompts"
            + (f" after the first {spec.offset}" if spec.offset else "")
        )


def shards(spec: Prompts) -> Iterator[Shard]:
    """Streams the prompt set as shards of ``spec.shard_size`` prompts."""
    prompts = read(spec)
    for index in itertools.count():
        part = tuple(itertools.islice(prompts, spec.shard_size))
        if not part:
            return
        yield Shard(index, part)


@dataclass(frozen=True)
class ShardPlan:
    """One entry of ``shards.json``: how many prompts a shard has, and their digest."""

    index: int
    prompts: int
    digest: str


def plan(spec: Prompts) -> list[ShardPlan]:
    """Reads the whole set once: checks that ids are unique, returns its frozen shards.

    Raises UserError with the first offenders where an id stands twice.
    """
    seen: set[str] = set()
    twice: list[str] = []
    found = []
    for shard in shards(spec):
        for prompt in shard.prompts:
            if prompt.id in seen and len(twice) < 5 and prompt.id not in twice:
                twice.append(prompt.id)
            seen.add(prompt.id)
        found.append(ShardPlan(shard.index, len(shard.prompts), shard.digest))
    if twice:
        raise UserError(
            f"prompts file {spec.path} has duplicate ids ({', '.join(twice)}"
            f"{', ...' if len(twice) == 5 else ''}); ids name rows and seeds, so each must be "
            "unique: choose another prompts.id_column or remove the repeats"
        )
    return found


@dataclass(frozen=True)
class _Columns:
    text: str | None
    id: str | None
    image: str | None

    @classmethod
    def choose(cls, spec: Prompts, path: Path, row: dict[str, Any]) -> "_Columns":
        def named(column: str) -> str:
            if column not in row:
                raise UserError(
                    f"prompts file {path} has no column {column!r}; it has: {', '.join(row)}"
                )
            return column

        def guess(candidates: Iterable[str]) -> str | None:
            return next((name for name in candidates if name in row), None)

        image = named(spec.image_column) if spec.image_column else guess(IMAGE_COLUMNS)
        text = named(spec.text_column) if spec.text_column else guess(TEXT_COLUMNS)
        if text is None and image is None:
            raise UserError(
                f"prompts file {path} has no column named like a caption ({', '.join(row)}); "
                "name it with prompts.text_column"
            )
        identity = named(spec.id_column) if spec.id_column else guess(ID_COLUMNS)
        return cls(text, identity, image if spec.image_column or text is None else None)

    def prompt(self, path: Path, line: int, position: int, row: dict[str, Any]) -> Prompt:
        text = "" if self.text is None else row.get(self.text)
        if text is None or (self.text is not None and not str(text).strip()):
            raise UserError(f"prompts file {path}, row {line}: no text in column {self.text!r}")
        text = str(text).strip()
        image = None if self.image is None else _picture(path, line, row.get(self.image))
        given = None if self.id is None else row.get(self.id)
        identity = "" if given is None else str(given).strip()
        return Prompt(identity or _made_id(position, text), text, image)


def _made_id(position: int, text: str) -> str:
    """An id from content and position: stable for the file, and told apart when texts repeat."""
    return f"{position:08d}-{blake2b(text.encode(), digest_size=6).hexdigest()}"


def _picture(path: Path, line: int, value: Any) -> bytes:
    if isinstance(value, dict):  # the Hugging Face image struct
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    file = path.parent / str(value)
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"prompts file {path}, row {line}: picture {str(value)!r} cannot be read: "
            f"{error.strerror}"
        ) from None


def _guarded(path: Path, reader) -> Iterator[Row]:
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


def _delimited_rows(delimiter: str):
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


_READERS = {
    ".txt": _text_rows,
    ".csv": _delimited_rows(","),
    ".tsv": _delimited_rows("\t"),
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".json": _coco_rows,
}
