"""Reads a prompt set and cuts it into shards.

Everything streams: a prompt set is never held in memory, only its ids (to refuse duplicates).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.prompts import formats
from tgate_batch.records import Prompt, Shard

TEXT_COLUMNS = ("caption", "prompt", "text", "captions", "prompts", "TEXT")
ID_COLUMNS = ("prompt_id", "id", "image_id", "key", "uid")
IMAGE_COLUMNS = ("image", "image_path", "file_name")

_REPEATS_NAMED = 5


def read(spec: Prompts, by: str | None = None) -> Iterator[Prompt]:
    """Streams the prompts of ``spec`` in file order, after ``offset``, at most ``limit``.

    ``by`` is the column that holds their categories. Raises UserError for a file that is missing,
    empty, not UTF-8 or has no such column, and for a row without text. Duplicate ids are left to
    :func:`unique`.
    """
    path = Path(spec.path)
    stop = None if spec.limit is None else spec.offset + spec.limit
    rows = itertools.islice(formats.rows(path), spec.offset, stop)
    columns: _Columns | None = None
    for position, (line, row) in enumerate(rows, start=spec.offset):
        columns = columns or _Columns.choose(spec, by, path, row)
        yield columns.prompt(path, line, position, row)
    if columns is None:
        raise UserError(
            f"prompts file {path} holds no prompts"
            + (f" after the first {spec.offset}" if spec.offset else "")
        )


def shards(prompts: Iterable[Prompt], sizes: Iterable[int]) -> Iterator[Shard]:
    """Cuts prompts into shards of these sizes, in order; the last one may be smaller."""
    prompts = iter(prompts)
    for index, size in enumerate(sizes):
        part = tuple(itertools.islice(prompts, size))
        if not part:
            return
        yield Shard(index, part)


_PARTS = 640  # of what is left, a shard is one part: some hundred workers then end together
_FEWEST_PARTS = 8  # for sets that only a few workers draw
_SMALLEST = 4  # prompts a shard


def shard_sizes(left: int, largest: int, batch: int) -> Iterator[int]:
    """Sizes that cut ``left`` prompts into shards, ever smaller towards the end.

    The last ones keep many workers busy to the end; they do not depend on how many there are.
    Shards are whole batches of ``batch`` prompts, the very last ones half a batch.
    """
    parts = min(_PARTS, max(_FEWEST_PARTS, left // 16))
    half, last = max(_SMALLEST, batch // 2), parts * batch // 4
    while left > 0:
        unit = batch if left >= last else half
        units = math.ceil(max(_SMALLEST, left / parts) / unit)
        size = min(left, largest, units * unit)
        yield size
        left -= size


def count(spec: Prompts) -> int:
    """How many prompts ``spec`` chooses of its file. Raises as ``read`` does for a bad file."""
    stop = None if spec.limit is None else spec.offset + spec.limit
    return sum(1 for _ in itertools.islice(formats.rows(Path(spec.path)), spec.offset, stop))


def unique(prompts: Iterable[Prompt], path: str) -> Iterator[Prompt]:
    """Passes the prompts on. At the end, raises UserError where ids stood twice, naming some."""
    seen: set[str] = set()
    twice: list[str] = []
    for prompt in prompts:
        if prompt.id in seen and len(twice) < _REPEATS_NAMED and prompt.id not in twice:
            twice.append(prompt.id)
        seen.add(prompt.id)
        yield prompt
    if twice:
        raise UserError(
            f"prompts file {path} has duplicate ids ({', '.join(twice)}"
            f"{', ...' if len(twice) == _REPEATS_NAMED else ''}); ids name rows and seeds, so each "
            "must be unique: choose another prompts.id_column or remove the repeats"
        )


@dataclass(frozen=True)
class _Columns:
    text: str | None
    id: str | None
    image: str | None
    category: str | None

    @classmethod
    def choose(cls, spec: Prompts, by: str | None, path: Path, row: dict[str, Any]) -> "_Columns":
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
        chosen = image if spec.image_column or text is None else None
        return cls(text, identity, chosen, named(by) if by else None)

    def prompt(self, path: Path, line: int, position: int, row: dict[str, Any]) -> Prompt:
        text = "" if self.text is None else row.get(self.text)
        if text is None or (self.text is not None and not str(text).strip()):
            raise UserError(f"prompts file {path}, row {line}: no text in column {self.text!r}")
        text = str(text).strip()
        image = None if self.image is None else _picture(path, line, row.get(self.image))
        given = None if self.id is None else row.get(self.id)
        identity = "" if given is None else str(given).strip()
        category = None if self.category is None else str(row.get(self.category))
        return Prompt(identity or _made_id(position, text), text, image, category)


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
