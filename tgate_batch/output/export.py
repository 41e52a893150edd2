"""Stored pictures as files of their own: the `imagefolder` convention of Hugging Face `datasets`.

    <model>/<arm>/00000-00012-0123456789abcdef.webp   shard, row, and a hash of prompt id and number
    <model>/<arm>/metadata.jsonl                      a line a picture: file_name, text, ...

An arm's folder is one data set, and flat: `pytorch-fid` and training scripts read it. A file has
the bytes of the stored image, and the same name in every arm. One that is there with these bytes is
not written again; ``metadata.jsonl`` is written last, so its existence means that all of them are.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.output import parquet
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Run
from tgate_batch.records import SCHEMA
from tgate_batch.storage import Folder

FORMATS = ("imagefolder",)
METADATA = "metadata.jsonl"
_APART = ("prompt", "status", "error", "error_kind", "error_traceback", "image", "video")
TOLD = tuple(name for name in SCHEMA.names if name not in _APART)  # beside its file and its text
_OURS = re.compile(r"\d{5,}-\d{5,}-[0-9a-f]{16}\.[a-z]+")
_WRITERS = 16  # files that are written at once: a disk flushes, a store answers, each after a while


@dataclass
class ExportResult:
    """What came of one arm. ``missing``: shards whose file is not there, or damaged."""

    model: str
    arm: str
    pictures: int = 0
    written: int = 0
    errors: int = 0
    missing: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        now = f"{self.written:,} written now" if self.written else "all exported before"
        told = f"{self.model} {self.arm}: "
        told += f"{self.pictures:,} pictures, {now}" if self.pictures else "no pictures"
        if self.errors:
            told += f"; {self.errors:,} error rows left out"
        if self.missing:
            told += (
                f"; {len(self.missing):,} shards are missing or damaged (first: {self.missing[0]})"
            )
        return told


def select_arms(
    run: Run, model: str | None = None, arm: str | None = None
) -> list[tuple[str, str]]:
    """(model, arm) of the run: all, or of these names. Raises UserError where there is none."""
    every = [(found.name, name) for found, name, _ in run.pairs()]
    pairs = [pair for pair in every if model in (None, pair[0]) and arm in (None, pair[1])]
    if not pairs:
        asked = " ".join(filter(None, (model, arm)))
        having = ", ".join(map(" ".join, every))
        raise UserError(f"output {run.folder} has no pictures of {asked}; it has: {having}")
    return pairs


def export(
    run: Run,
    to: str,
    pairs: list[tuple[str, str]],
    form: str = "imagefolder",
    shard_done: Callable[[], None] = lambda: None,
) -> Iterator[ExportResult]:
    """Writes the pictures of these models and arms into a folder or URI; yields arm by arm.

    What is there of an earlier export is kept, and what is of other content than the run has now is
    removed. ``shard_done`` is called after each shard. Raises UserError for an unknown form, for a
    place that cannot be written or lies in the run's own folder, and for one with files of
    somebody else.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: unknown; one of: {', '.join(FORMATS)}")
    target = Folder(to)
    if f"{target.path('')}/".startswith(f"{run.folder.path('')}/"):
        raise UserError(
            f"--to {target} lies in the output folder itself; give a folder outside of it"
        )
    target.check_writable()
    held = {pair: set(_names(target, *pair)) for pair in pairs}
    for pair in pairs:
        yield _export(run, target.within("/".join(pair)), *pair, held[pair], shard_done)


def _names(target: Folder, model: str, arm: str) -> Iterator[str]:
    """The files of an earlier export of an arm."""
    place = f"{model}/{arm}"
    for path in target.names(place):
        name = path.removeprefix(f"{place}/")
        if name != METADATA and not _OURS.fullmatch(name):
            raise UserError(
                f"--to {target}: {path} is no file of an export, and readers would take it for "
                "one; give another folder"
            )
        yield name


def _export(
    run: Run,
    target: Folder,
    model: str,
    arm: str,
    there: set[str],
    shard_done: Callable[[], None],
) -> ExportResult:
    """Exports one arm. ``there``: the names of the files that its folder holds.

    A file is unchanged if an earlier export lists it with the digest that its row has now.
    """
    found = ExportResult(model, arm)
    told: dict[str, str] = {}  # a file's name -> its line
    target.clear_temporary()
    before = frozenset((target.get(METADATA) or b"").decode(errors="replace").splitlines(True))
    with ThreadPoolExecutor(_WRITERS) as writers:
        for shard in run.shards:
            lines: dict[str, str] = {}
            errors = 0
            try:
                for rows in _rows(run, model, arm, shard):
                    new = {name: row for name, row in rows.items() if row["status"] == "ok"}
                    of_rows = {name: _line(name, row) for name, row in new.items()}
                    changed = [
                        name
                        for name, row in new.items()
                        if not (name in there and row.get("digest") and of_rows[name] in before)
                    ]
                    contents = [new[name]["image"]["bytes"] for name in changed]
                    found.written += sum(
                        writers.map(partial(_written, target, there), changed, contents)
                    )
                    errors += len(rows) - len(new)
                    lines |= of_rows
            except (*parquet.DAMAGE, KeyError):
                found.missing.append(shard.index)
            else:
                told |= lines
                found.errors += errors
            shard_done()
    found.pictures = len(told)
    _conclude(target, "".join(told.values()), sorted(there - told.keys() - {METADATA}))
    return found


def _written(target: Folder, there: set[str], name: str, content: bytes) -> bool:
    """Writes an image's file unless it is there with these bytes; returns whether it wrote it."""
    if name in there and target.get(name) == content:
        return False
    target.write(name, content)
    there.add(name)
    return True


def _rows(run: Run, model: str, arm: str, shard: ShardPlan) -> Iterator[dict[str, dict[str, Any]]]:
    """The rows of a shard's file, a few at a time, each by the name of its picture's file.

    Raises one of ``parquet.DAMAGE``, and KeyError where the arm has no pictures.
    """
    file, identity = run.pictures(model, arm, shard)
    form = run.provenance_of(model, arm)["images.format"]
    columns = [*TOLD, "prompt", "status", "image"]
    number = 0
    for batch in parquet.read_batches(run.folder, file, columns, identity=identity):
        named = {}
        for row in batch.to_pylist():
            key = json.dumps([row["prompt_id"], row["image_number"]]).encode()
            digest = blake2b(key, digest_size=8).hexdigest()
            named[f"{shard.index:05d}-{number:05d}-{digest}.{form}"] = row
            number += 1
        yield named


def _line(name: str, row: dict[str, Any]) -> str:
    told = {"file_name": name, "text": row["prompt"], **{key: row.get(key) for key in TOLD}}
    return json.dumps(told) + "\n"


def _conclude(target: Folder, lines: str, left_over: list[str]) -> None:
    """Removes what the run no longer has, and says what is there; it never says what is not."""
    if not left_over and (target.get(METADATA) or b"") == lines.encode():
        return
    target.delete(METADATA)
    for name in left_over:
        target.delete(name)
    if lines:
        target.write(METADATA, lines)


_SPLIT = re.compile(
    r"(^|[-._0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)"
    r"([-._0-9]|$)"
)


def is_split(name: str) -> bool:
    """Whether `datasets` takes a folder of this name for a part of the data: train, test, ..."""
    return _SPLIT.search(name) is not None
