"""Sources of a reference's images, cut into parts that workers read.

A source is a folder or a pattern of images or of tar shards, one tar, Parquet rows with an
``image`` column, a list of paths, or demo scenes of a run's captions. Hidden files and those that
macOS adds to archives (``._x``, ``__MACOSX``) are ignored. Images are sorted by name; in Parquet
they are in the order of files and rows. So the order of a file listing or an archive does not
matter.
"""

import fnmatch
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from tgate_batch.demo.scenes import parse
from tgate_batch.errors import UserError, one_line
from tgate_batch.output import parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.score.image_parts import (
    DemoImages,
    ImageFiles,
    ImagePart,
    ParquetImages,
    TarMembers,
    unreadable,
)
from tgate_batch.score.registry import is_pattern
from tgate_batch.storage import Folder, without_credentials

PART = 256  # images
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

_DRAWING = 1  # raise it when equal captions result in other drawings

Stamp = tuple[str, int, int | None]  # of a file: name, size, time


@dataclass(frozen=True)
class ImageSource:
    """All images of one source; ``name`` has no credentials.

    ``listing`` is a digest of names, sizes and times of the files, or of a run's captions: equal
    listings are taken for equal images. Parts have ``PART`` images; the last may have fewer.
    """

    name: str
    listing: str
    parts: tuple[ImagePart, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def open_source(spec: str) -> ImageSource:
    """Opens a path or URI: a folder, a ``.tar``, a ``.parquet``, or a ``.txt`` of paths.

    A folder has Parquet rows, images, or tar shards, also in its subfolders; a pattern is a folder
    of the matching files. Paths in a list are relative to the list. Raises UserError if there are
    no images.
    """
    shown = without_credentials(spec)
    try:
        folder, name = Folder.of_file(spec)
        suffix = PurePosixPath(name).suffix.lower()
        if is_pattern(spec):
            source = _of_stamps(folder, _matching(folder, name), shown)
        elif not name or not folder.exists(name):
            source = _of_stamps(Folder(spec), Folder(spec).stamps(""), shown)
        elif suffix in _READERS:
            source = _READERS[suffix](folder, name, shown)
        else:
            raise UserError(
                f"reference {shown} is not a folder and not {', '.join(_READERS)}"
                + (". Fix: unpack it; members of a compressed tar cannot be read at random")
                * (suffix in (".gz", ".tgz", ".bz2", ".xz", ".zip"))
            )
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"reference {shown} cannot be read: {one_line(error, 200)}") from None
    if not source.parts:
        raise UserError(
            f"reference {shown} has no images ({', '.join(sorted(SUFFIXES))}), no Parquet rows and "
            "no .tar with images"
        )
    return source


def demo_images(folder: Folder, shards: Sequence[ShardPlan]) -> ImageSource | None:
    """Returns a drawing of every caption of a run; None if one is outside the demo's grammar."""
    if not all(parse(text) for text in prompt_store.texts(folder, shards)):
        return None
    ranges, count = [], 0  # first caption of each shard, and the caption after its last
    for shard in shards:
        ranges.append((count, count + shard.prompts, shard))
        count += shard.prompts
    parts = []
    for start in range(0, count, PART):
        stop = min(start + PART, count)
        own = [(first, shard) for first, end, shard in ranges if first < stop and end > start]
        parts.append(DemoImages(folder, tuple(shard for _, shard in own), own[0][0], start, stop))
    listing = _digest("drawn", _DRAWING, [shard.digest for shard in shards])
    return ImageSource("drawn", listing, tuple(parts))


def _matching(folder: Folder, pattern: str) -> list[Stamp]:
    return [
        stamp
        for stamp in folder.stamps("")
        if "/" not in stamp[0] and fnmatch.fnmatchcase(stamp[0], pattern)
    ]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _of_stamps(folder: Folder, stamps: list[Stamp], shown: str) -> ImageSource:
    """The files of a folder: tables of rows, else images, else tar shards.

    Tables without an ``image`` column are ignored next to tar shards, whose images they describe.
    """
    stamps = [stamp for stamp in stamps if not _is_hidden(stamp[0])]
    tables = [name for name, _, _ in stamps if name.endswith(".parquet")]
    shards = sorted(name for name, _, _ in stamps if name.endswith(".tar"))
    if shards and tables and "image" not in _schema(folder, tables[0])[0].names:
        tables = []
    if tables:
        sets = sorted({str(PurePosixPath(table).parent) for table in tables})
        if len(sets) > 1:
            raise UserError(
                f"reference {shown} has several sets ({sets[0]}, {sets[1]}, ...). Fix: name one of "
                "them"
            )
        return _of_tables(folder, tables, shown)
    images = [stamp for stamp in stamps if _is_image(stamp[0])]
    if shards and not images:
        return _of_tars(folder, shards, shown)
    return _of_files(folder, images, shown)


def _of_files(folder: Folder, stamps: list[Stamp], shown: str) -> ImageSource:
    stamps = sorted(stamps)
    parts = [ImageFiles(folder, tuple(name for name, _, _ in cut)) for cut in _cut(stamps)]
    return ImageSource(shown, _digest("files", stamps), tuple(parts))


def _of_list(folder: Folder, name: str, shown: str) -> ImageSource:
    try:
        lines = folder.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"reference {shown} is not a list of paths: it is not UTF-8") from None
    names = [line.strip() for line in lines if line.strip()]
    twice = [one for one, other in pairwise(sorted(names)) if one == other]
    if twice:
        raise UserError(f"reference {shown} lists {twice[0]} twice")
    folder = folder.unconfined
    stamps = folder.stamps_of(names)
    if missing := set(names) - {stamp[0] for stamp in stamps}:
        raise UserError(f"reference {shown} lists {min(missing)}, which does not exist")
    return _of_files(folder, stamps, shown)


def _of_tars(folder: Folder, names: list[str], shown: str, source: str = "tars") -> ImageSource:
    parts = [
        TarMembers(folder, name, tuple(cut), "" if source == "tar" else f"{name}/")
        for name in names
        for cut in _cut(_members(folder, name))
    ]
    return ImageSource(shown, _digest(source, folder.stamps_of(names)), tuple(parts))


def _members(folder: Folder, name: str) -> list[tuple[str, int, int]]:
    """The images in a tar: name, offset and size, sorted by name."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                path = member.name.removeprefix("./")
                if member.isreg() and _is_image(path) and not _is_hidden(path):
                    members[path] = (member.offset_data, member.size)  # the last of a name counts
    except (OSError, tarfile.TarError) as error:
        raise unreadable(folder, name, error) from None
    return [(path, *where) for path, where in sorted(members.items())]


def _of_tables(folder: Folder, tables: list[str], shown: str) -> ImageSource:
    parts: list[list[tuple[str, int, int]]] = []
    room = 0  # rows that still fit into the last part
    for table in tables:
        schema, count = _schema(folder, table)
        _check_columns(schema, table)
        start = 0
        while start < count:
            if room == 0:
                parts.append([])
                room = PART
            stop = min(start + room, count)
            parts[-1].append((table, start, stop))
            room -= stop - start
            start = stop
    listing = _digest("rows", folder.stamps_of(tables))
    return ImageSource(shown, listing, tuple(ParquetImages(folder, tuple(rows)) for rows in parts))


_READERS: dict[str, Callable[[Folder, str, str], ImageSource]] = {
    ".tar": lambda folder, name, shown: _of_tars(folder, [name], shown, "tar"),
    ".parquet": lambda folder, name, shown: _of_tables(folder, [name], shown),
    ".txt": _of_list,
}


def _schema(folder: Folder, table: str) -> tuple[pa.Schema, int]:
    """The columns of a Parquet file, and its number of rows."""
    try:
        with parquet.open_table(folder, table) as file:
            return file.schema_arrow, file.metadata.num_rows
    except parquet.DAMAGE as error:
        raise unreadable(folder, table, error) from None


def _check_columns(schema: pa.Schema, table: str) -> None:
    column = schema.field("image").type if "image" in schema.names else None
    if column is not None and pa.types.is_struct(column):
        column = column.field("bytes").type if column.get_field_index("bytes") >= 0 else None
    if column is None or not (pa.types.is_binary(column) or pa.types.is_large_binary(column)):
        raise UserError(
            f"reference: {table} has no column `image` with the bytes of images (binary, or a "
            "struct with `bytes`)"
        )


def _cut(rows: list) -> Iterator[list]:
    return (rows[start : start + PART] for start in range(0, len(rows), PART))


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
