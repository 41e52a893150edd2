"""Parts of a source of images, which workers read: files, tar members, Parquet rows, demo scenes.

A part is plain data: it is sent to a worker, and read there. Its images come in a fixed order.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow.parquet as pq

from tgate_batch.demo.scenes import draw
from tgate_batch.errors import UserError, one_line
from tgate_batch.output import parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.storage import Folder

_READERS = 8  # files read concurrently, to hide the latency of a store
_RUN_NAMES = ["prompt_id", "image_number"]  # the columns that name an image of a run

NamedImage = tuple[str, bytes]  # an image's name, and its encoded bytes


class ImagePart(Protocol):
    """Some images of a source; its length is the number of rows or files that it reads."""

    def __len__(self) -> int: ...

    def images(self) -> Iterator[NamedImage]:
        """Yields the images in order. Raises UserError with the name of what cannot be read."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Images in separate files."""

    folder: Folder
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def images(self) -> Iterator[NamedImage]:
        with ThreadPoolExecutor(_READERS) as readers:
            yield from zip(self.names, readers.map(self._read, self.names), strict=True)

    def _read(self, name: str) -> bytes:
        try:
            return self.folder.read(name)
        except OSError as error:
            raise unreadable(self.folder, name, error) from None


@dataclass(frozen=True)
class TarMembers:
    """Images in an uncompressed tar: name, offset and size in bytes.

    ``prefix`` is ``<tar>/`` if the source has several tars; it precedes the names.
    """

    folder: Folder
    tar: str
    members: tuple[tuple[str, int, int], ...]
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.members)

    def images(self) -> Iterator[NamedImage]:
        try:
            with self.folder.open(self.tar) as file:
                for name, offset, size in self.members:
                    file.seek(offset)
                    yield self.prefix + name, file.read(size)
        except OSError as error:
            raise unreadable(self.folder, self.tar, error) from None


@dataclass(frozen=True)
class ParquetImages:
    """Images in Parquet: files, each with its first row and the row after its last.

    An image of a run is named ``<prompt id>/<image number>``, another one by its ``path``, or
    ``<file>#<row>`` if it has none. Rows without an image are skipped.
    """

    folder: Folder
    rows: tuple[tuple[str, int, int], ...]

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.rows)

    def images(self) -> Iterator[NamedImage]:
        for table, start, stop in self.rows:
            try:
                with parquet.open_table(self.folder, table) as file:
                    for row, values in _rows(file, start, stop):
                        if (image := _image(values, f"{table}#{row}")) is not None:
                            yield image
            except parquet.DAMAGE as error:
                raise unreadable(self.folder, table, error) from None


@dataclass(frozen=True)
class DemoImages:
    """Scenes of the embedded model: captions ``start`` to ``stop`` of a run, drawn once each.

    The seed of a drawing is the number of its caption. ``first`` is the number of the first caption
    of ``shards``.
    """

    folder: Folder
    shards: tuple[ShardPlan, ...]
    first: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def images(self) -> Iterator[NamedImage]:
        texts = enumerate(prompt_store.texts(self.folder, self.shards), start=self.first)
        for seed, caption in texts:
            if self.start <= seed < self.stop:
                stream = io.BytesIO()
                draw(caption, seed).save(stream, "PNG", compress_level=1)
                yield f"{seed} {caption}", stream.getvalue()


def unreadable(folder: Folder, name: str, error: Exception) -> UserError:
    """Returns the error for a file that cannot be read."""
    return UserError(f"{folder.path(name)} cannot be read: {one_line(error, 200)}")


def _rows(file: pq.ParquetFile, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows ``start`` to ``stop`` with their numbers; reads only their row groups."""
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


def _image(values: dict[str, Any], row: str) -> NamedImage | None:
    image = values["image"]
    if image is None:
        return None
    path = None
    if isinstance(image, dict):
        image, path = image["bytes"], image.get("path")
        if image is None:
            raise UserError(
                f"reference: {row} has the path {path!r} of an image, not its bytes. Fix: store "
                "the bytes in the column `image`"
            )
    if values.keys() >= set(_RUN_NAMES):
        return f"{values['prompt_id']}/{values['image_number']}", image
    return path or row, image
