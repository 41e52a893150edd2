"""Exports stored images as single files, in the `imagefolder` layout of Hugging Face `datasets`.

    <model>/<arm>/00000-00012-0123456789abcdef.webp   shard, row, and a hash of prompt id and number
    <model>/<arm>/metadata.jsonl                      one line per image: file_name, text, ...

An arm's folder is a flat data set that `pytorch-fid` and training scripts can read. A file has the
bytes of the stored image, and the same name in every arm. An unchanged file is not written again.
``metadata.jsonl`` is written last, so if it exists, the export is complete.
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
_COLUMNS = tuple(name for name in SCHEMA.names if name not in _APART)  # in a line of metadata
_OURS = re.compile(r"\d{5,}-\d{5,}-[0-9a-f]{16}\.[a-z]+")
_WRITERS = 16  # files written at once, because each waits for a disk or a store


@dataclass
class ExportResult:
    """The result of one arm. ``missing``: shards whose file is missing or damaged."""

    model: str
    arm: str
    pictures: int = 0
    written: int = 0
    errors: int = 0
    missing: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        now = f"{self.written:,} written now" if self.written else "all exported before"
        parts = [f"{self.pictures:,} images, {now}" if self.pictures else "no images"]
        if self.errors:
            parts.append(f"{self.errors:,} error rows left out")
        if missing := self.missing:
            parts.append(f"{len(missing):,} shards are missing or damaged (first: {missing[0]})")
        return f"{self.model} {self.arm}: {'; '.join(parts)}"


def select_arms(
    run: Run, model: str | None = None, arm: str | None = None
) -> list[tuple[str, str]]:
    """Returns every (model, arm) of the run, or those of a name; raises UserError for none."""
    every = [(section.name, name) for section, name, _ in run.pairs()]
    pairs = [pair for pair in every if model in (None, pair[0]) and arm in (None, pair[1])]
    if not pairs:
        given = " ".join(filter(None, (model, arm)))
        known = ", ".join(map(" ".join, every))
        raise UserError(f"output {run.folder} has no images of {given}; it has: {known}")
    return pairs


def export(
    run: Run,
    to: str,
    pairs: list[tuple[str, str]],
    form: str = "imagefolder",
    shard_done: Callable[[], None] = lambda: None,
) -> Iterator[ExportResult]:
    """Writes the images of these models and arms into a folder or URI; yields arm by arm.

    Unchanged files of an earlier export are kept, and outdated ones are removed. ``shard_done`` is
    called after each shard. Raises UserError for an unknown format, and for a target that cannot be
    written, is in the run's own folder, or has other files.

    Example::

        run = load_run("out/demo")
        for result in export(run, "exported", select_arms(run)):
            print(result)
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: unknown; one of: {', '.join(FORMATS)}")
    target = Folder(to)
    if f"{target.path('')}/".startswith(f"{run.folder.path('')}/"):
        raise UserError(
            f"--to {target} is in the output folder itself. Fix: give a folder outside of it"
        )
    target.check_writable()
    existing = {pair: set(_names(target, *pair)) for pair in pairs}
    for pair in pairs:
        yield _export(run, target.within("/".join(pair)), *pair, existing[pair], shard_done)


def _names(target: Folder, model: str, arm: str) -> Iterator[str]:
    """Yields the files of an earlier export of an arm."""
    for path in target.names(f"{model}/{arm}"):
        name = path.removeprefix(f"{model}/{arm}/")
        if name != METADATA and not _OURS.fullmatch(name):
            raise UserError(
                f"--to {target}: {path} is not a file of an export, but would be read as a part of "
                "it. Fix: give another folder"
            )
        yield name


def _export(
    run: Run,
    target: Folder,
    model: str,
    arm: str,
    existing: set[str],
    shard_done: Callable[[], None],
) -> ExportResult:
    """Exports one arm; ``existing``: the names of the files in its folder.

    A file is unchanged if an earlier export lists it with the current digest of its row.
    """
    result = ExportResult(model, arm)
    listed: dict[str, str] = {}  # a file's name -> its line
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
                        if not (name in existing and row.get("digest") and of_rows[name] in before)
                    ]
                    contents = [new[name]["image"]["bytes"] for name in changed]
                    result.written += sum(
                        writers.map(partial(_write, target, existing), changed, contents)
                    )
                    errors += len(rows) - len(new)
                    lines |= of_rows
            except (*parquet.DAMAGE, KeyError):
                result.missing.append(shard.index)
            else:
                listed |= lines
                result.errors += errors
            shard_done()
    result.pictures = len(listed)
    _finish(target, "".join(listed.values()), sorted(existing - listed.keys() - {METADATA}))
    return result


def _write(target: Folder, existing: set[str], name: str, content: bytes) -> bool:
    """Writes an image file unless it has this content already; returns True if it was written."""
    if name in existing and target.get(name) == content:
        return False
    target.write(name, content)
    existing.add(name)
    return True


def _rows(run: Run, model: str, arm: str, shard: ShardPlan) -> Iterator[dict[str, dict[str, Any]]]:
    """Yields the rows of a shard's file, a few at a time, by the names of their image files.

    Raises one of ``parquet.DAMAGE``, and KeyError if the arm has no images.
    """
    file, identity = run.pictures(model, arm, shard)
    form = run.provenance_of(model, arm)["images.format"]
    columns = [*_COLUMNS, "prompt", "status", "image"]
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
    values = {key: row.get(key) for key in _COLUMNS}
    return json.dumps({"file_name": name, "text": row["prompt"], **values}) + "\n"


def _finish(target: Folder, lines: str, outdated: list[str]) -> None:
    """Removes outdated files and writes the metadata, which never lists a missing file."""
    if not outdated and (target.get(METADATA) or b"") == lines.encode():
        return
    target.delete(METADATA)
    for name in outdated:
        target.delete(name)
    if lines:
        target.write(METADATA, lines)


_SPLIT = re.compile(
    r"(^|[-._0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)"
    r"([-._0-9]|$)"
)


def is_split(name: str) -> bool:
    """Returns True if `datasets` reads a folder of this name as a split: train, test, ..."""
    return _SPLIT.search(name) is not None
