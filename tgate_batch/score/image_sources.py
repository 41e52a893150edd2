"""Sources of a reference's images, cut into parts that workers read.

A source is a folder or a pattern of images or of tar shards, one tar, Parquet rows with an
``image`` column, a list of paths, or the drawings of a run's captions. Hidden files and those that
a Mac puts into archives (``._x``, ``__MACOSX``) are no part of a source. A part is plain data: it
travels to a worker, and opens there to (name, encoded bytes). Images stand in the order of their
names, in Parquet in that of files and rows, so the order in which a disk or an archive lists them
does not matter.
"""

import fnmatch
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.demo.scenes import draw, parse
from tgate_batch.errors import UserError
from tgate_batch.output import parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.score.registry import is_pattern
from tgate_batch.storage import Folder, without_credentials

PART = 256  # images
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

_DRAWING = 1  # raised by hand when equal captions are drawn otherwise
_READERS = 8  # files read at once: a store answers each after a while
_RUN_NAMES = ["prompt_id", "image_number"]  # the columns that name an image of a run

Stamp = tuple[str, int, int | None]  # of a file: name, size, time
NamedImage = tuple[str, bytes]  # an image's name, and its encoded bytes


class ImagePart(Protocol):
    """Some images of a source; its length is how many rows or files it reads."""

    def __len__(self) -> int: ...

    def pictures(self) -> Iterator[NamedImage]:
        """Reads them in order. Raises UserError, naming what cannot be read."""
        ...


@dataclass(frozen=True)
class ImageSource:
    """All images of one place. ``name`` is free of credentials.

    ``listing`` is a digest of names, sizes and times of the files, or of a run's captions: equal
    listings are taken for equal images. Parts hold ``PART`` images, the last one the rest.
    """

    name: str
    listing: str
    parts: tuple[ImagePart, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


@dataclass(frozen=True)
class ImageFiles:
    """Images in files of their own."""

    folder: Folder
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def pictures(self) -> Iterator[NamedImage]:
        with ThreadPoolExecutor(_READERS) as readers:
            yield from zip(self.names, readers.map(self._read, self.names), strict=True)

    def _read(self, name: str) -> bytes:
        try:
            return self.folder.read(name)
        except OSError as error:
            raise _unreadable(self.folder, name, error) from None


@dataclass(frozen=True)
class TarMembers:
    """Images in a tar without compression: name, offset and size in bytes.

    Members of one of several tars are named ``<tar>/<member>`` (``prefix``).
    """

    folder: Folder
    tar: str
    members: tuple[tuple[str, int, int], ...]
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.members)

    def pictures(self) -> Iterator[NamedImage]:
        try:
            with self.folder.open(self.tar) as file:
                for name, offset, size in self.members:
                    file.seek(offset)
                    yield self.prefix + name, file.read(size)
        except OSError as error:
            raise _unreadable(self.folder, self.tar, error) from None


@dataclass(frozen=True)
class ParquetImages:
    """Images in Parquet: files, with their first row and the one after their last.

    An image of a run is named ``<prompt id>/<image number>``, another one by its ``path``, or
    ``<file>#<row>`` where it has none. Rows without an image are passed over.
    """

    folder: Folder
    rows: tuple[tuple[str, int, int], ...]

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.rows)

    def pictures(self) -> Iterator[NamedImage]:
        for table, start, stop in self.rows:
            try:
                with parquet.open_table(self.folder, table) as file:
                    for row, values in _rows(file, start, stop):
                        if (found := _picture(values, f"{table}#{row}")) is not None:
                            yield found
            except parquet.DAMAGE as error:
                raise _unreadable(self.folder, table, error) from None


@dataclass(frozen=True)
class DemoImages:
    """The embedded model's world itself: captions ``start`` to ``stop`` of a run, drawn once each.

    The seed of a drawing is its caption's number. ``first`` is the number of the first caption of
    ``shards``.
    """

    folder: Folder
    shards: tuple[ShardPlan, ...]
    first: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def pictures(self) -> Iterator[NamedImage]:
        texts = enumerate(prompt_store.texts(self.folder, self.shards), start=self.first)
        for seed, caption in texts:
            if self.start <= seed < self.stop:
                stream = io.BytesIO()
                draw(caption, seed).save(stream, "PNG", compress_level=1)
                yield f"{seed} {caption}", stream.getvalue()


def open_source(spec: str) -> ImageSource:
    """What a path or URI holds: a folder, a ``.tar``, a ``.parquet``, or a ``.txt`` of paths.

    A folder is one of Parquet rows, of images, or of tar shards, in its folders too; a pattern is
    a folder of the files that it matches. Paths of a list are relative to the list. Raises
    UserError where there is no image.
    """
    try:
        folder, name = Folder.of_file(spec)
        if is_pattern(spec):
            found = _of_stamps(folder, _matching(folder, name), spec)
        elif not name or not folder.exists(name):
            found = _of_stamps(Folder(spec), Folder(spec).stamps(""), spec)
        elif (suffix := PurePosixPath(name).suffix.lower()) in _KINDS:
            found = _KINDS[suffix](folder, name, spec)
        else:
            raise UserError(
                f"reference {_shown(spec)} is no folder and no {', '.join(_KINDS)}"
                + ("; unpack it: members of a compressed tar have no place to go to")
                * (suffix in (".gz", ".tgz", ".bz2", ".xz", ".zip"))
            )
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"reference {_shown(spec)} cannot be read: {_reason(error)}") from None
    if not found.parts:
        raise UserError(
            f"reference {_shown(spec)} holds no images ({', '.join(sorted(SUFFIXES))}), no "
            "Parquet rows and no .tar with images"
        )
    return found


def demo_images(folder: Folder, shards: Sequence[ShardPlan]) -> ImageSource | None:
    """A drawing of every caption of a run; None where one lies outside the drawings' grammar."""
    if not all(parse(text) for text in prompt_store.texts(folder, shards)):
        return None
    numbers, count = [], 0  # of each shard's first caption, and of the one after its last
    for shard in shards:
        numbers.append((count, count + shard.prompts, shard))
        count += shard.prompts
    parts = []
    for start in range(0, count, PART):
        stop = min(start + PART, count)
        held = [(first, shard) for first, end, shard in numbers if first < stop and end > start]
        parts.append(DemoImages(folder, tuple(shard for _, shard in held), held[0][0], start, stop))
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


def _of_stamps(folder: Folder, stamps: list[Stamp], spec: str) -> ImageSource:
    """The files of a folder: tables of rows, else images, else tar shards.

    Tables without an ``image`` column describe the images of the shards that lie beside them.
    """
    stamps = [stamp for stamp in stamps if not _is_hidden(stamp[0])]
    tables = [name for name, _, _ in stamps if name.endswith(".parquet")]
    shards = [name for name, _, _ in stamps if name.endswith(".tar")]
    if shards and tables and not _has_images(folder, tables[0]):
        tables = []
    if tables:
        sets = sorted({str(PurePosixPath(table).parent) for table in tables})
        if len(sets) > 1:
            raise UserError(
                f"reference {_shown(spec)} holds several sets ({sets[0]}, {sets[1]}, ...); name "
                "one of them"
            )
        return _of_tables(folder, tables, spec)
    pictures = [stamp for stamp in stamps if PurePosixPath(stamp[0]).suffix.lower() in SUFFIXES]
    if shards and not pictures:
        return _of_tars(folder, sorted(shards), spec)
    return _of_files(folder, pictures, spec)


def _of_files(folder: Folder, stamps: list[Stamp], spec: str) -> ImageSource:
    stamps = sorted(stamps)
    parts = [ImageFiles(folder, tuple(name for name, _, _ in cut)) for cut in _cut(stamps)]
    return ImageSource(_shown(spec), _digest("files", stamps), tuple(parts))


def _of_list(folder: Folder, name: str, spec: str) -> ImageSource:
    try:
        lines = folder.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"reference {_shown(spec)} is no list of paths: it is not UTF-8") from None
    names = [line.strip() for line in lines if line.strip()]
    twice = [one for one, other in pairwise(sorted(names)) if one == other]
    if twice:
        raise UserError(f"reference {_shown(spec)} lists {twice[0]} twice")
    folder = folder.unconfined
    stamps = folder.stamps_of(names)
    if missing := set(names) - {stamp[0] for stamp in stamps}:
        raise UserError(f"reference {_shown(spec)} lists {min(missing)}, which is not there")
    return _of_files(folder, stamps, spec)


def _of_tar(folder: Folder, name: str, spec: str) -> ImageSource:
    parts = [TarMembers(folder, name, tuple(cut)) for cut in _cut(_members(folder, name))]
    return ImageSource(_shown(spec), _digest("tar", folder.stamps_of([name])), tuple(parts))


def _of_tars(folder: Folder, names: list[str], spec: str) -> ImageSource:
    parts = [
        TarMembers(folder, name, tuple(cut), f"{name}/")
        for name in names
        for cut in _cut(_members(folder, name))
    ]
    return ImageSource(_shown(spec), _digest("tars", folder.stamps_of(names)), tuple(parts))


def _members(folder: Folder, name: str) -> list[tuple[str, int, int]]:
    """The images in a tar, by name, with offset and size."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                path = member.name.removeprefix("./")
                is_picture = PurePosixPath(path).suffix.lower() in SUFFIXES
                if member.isreg() and is_picture and not _is_hidden(path):
                    members[path] = (member.offset_data, member.size)  # the last of a name counts
    except (OSError, tarfile.TarError) as error:
        raise _unreadable(folder, name, error) from None
    return [(path, *place) for path, place in sorted(members.items())]


def _of_table(folder: Folder, name: str, spec: str) -> ImageSource:
    return _of_tables(folder, [name], spec)


def _of_tables(folder: Folder, tables: list[str], spec: str) -> ImageSource:
    parts: list[list[tuple[str, int, int]]] = []
    room = 0  # rows that the last part has room for
    for table in tables:
        try:
            with parquet.open_table(folder, table) as file:
                _check_columns(file.schema_arrow, table)
                count = file.metadata.num_rows
        except parquet.DAMAGE as error:
            raise _unreadable(folder, table, error) from None
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
    return ImageSource(
        _shown(spec), listing, tuple(ParquetImages(folder, tuple(rows)) for rows in parts)
    )


_KINDS: dict[str, Callable[[Folder, str, str], ImageSource]] = {
    ".tar": _of_tar,
    ".parquet": _of_table,
    ".txt": _of_list,
}


def _has_images(folder: Folder, table: str) -> bool:
    try:
        with parquet.open_table(folder, table) as file:
            return "image" in file.schema_arrow.names
    except parquet.DAMAGE as error:
        raise _unreadable(folder, table, error) from None


def _check_columns(schema: pa.Schema, table: str) -> None:
    kind = schema.field("image").type if "image" in schema.names else None
    if kind is not None and pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"reference: {table} has no column `image` with images' bytes (binary, or a struct "
            "with `bytes`)"
        )


def _rows(file: pq.ParquetFile, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows ``start`` to ``stop`` of a file, each with its number; reads their row groups alone."""
    groups, first, row = [], None, 0
    for group in range(file.num_row_groups):
        following = row + file.metadata.row_group(group).num_rows
        if row < stop and following > start:
            groups.append(group)
            first = row if first is None else first
        row = following
    names = set(file.schema_arrow.names)
    columns = ["image", *(_RUN_NAMES if names.issuperset(_RUN_NAMES) else ())]
    row = first or 0
    for batch in file.iter_batches(parquet.ROWS_A_GROUP, row_groups=groups, columns=columns):
        if row >= stop:
            return
        wanted = batch.slice(max(0, start - row), max(0, stop - max(row, start)))
        yield from enumerate(wanted.to_pylist(), start=max(row, start))
        row += len(batch)


def _picture(values: dict[str, Any], place: str) -> NamedImage | None:
    image = values["image"]
    if image is None:
        return None
    path = None
    if isinstance(image, dict):
        image, path = image["bytes"], image.get("path")
        if image is None:
            raise UserError(f"reference: {place} has the path {path!r} of an image, not its bytes")
    if values.keys() >= set(_RUN_NAMES):
        return f"{values['prompt_id']}/{values['image_number']}", image
    return path or place, image


def _cut(rows: list) -> Iterator[list]:
    return (rows[start : start + PART] for start in range(0, len(rows), PART))


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _unreadable(folder: Folder, name: str, error: Exception) -> UserError:
    return UserError(f"{folder.path(name)} cannot be read: {_reason(error)}")


def _shown(spec: str) -> str:
    return without_credentials(spec)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
