"""Makes a reference's file: images in parts, each part's features a file, all parts one ``.npz``.

A finished part is not extracted again, so rerunning a killed job resumes it. The same images,
extractor and number of threads give the same bytes, whoever extracted which part.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.metrics.broken_images import why_broken
from tgate_batch.metrics.features import Extractor
from tgate_batch.metrics.frechet import stream
from tgate_batch.metrics.sampling import NamedSample
from tgate_batch.output import history, layout, parquet
from tgate_batch.render.codec import decode_image
from tgate_batch.score.image_sources import ImagePart, ImageSource, NamedImage
from tgate_batch.score.reference import maker, of_sample
from tgate_batch.storage import Folder

SAMPLE = 10_000  # features kept for metrics that need images one by one

_BATCH = 64  # images that are decoded at once
_BROKEN_NAMED = 20

Extract = Callable[[Sequence[Image.Image]], np.ndarray]


@dataclass(frozen=True)
class ReferenceOrder:
    """What a worker is to extract: one part of a source, into one file.

    ``extractor`` is named as in a config, ``weights`` is its file (None: where it keeps them) and
    ``sha256`` theirs.
    """

    source: str
    number: int
    part: ImagePart
    folder: Folder
    file: str
    identity: str
    extractor: str
    weights: str | None
    sha256: str
    dimensions: int
    skip_unreadable: bool = False


@dataclass(frozen=True)
class ReferenceBuild:
    """One reference's file on its way: what it is made of, and where it goes.

    ``kind`` is the extractor's name in the config, ``weights`` its file. ``skip_unreadable`` leaves
    images out that cannot be read.
    """

    source: ImageSource
    folder: Folder
    file: str
    kind: str
    weights: str | None
    extractor: Extractor
    skip_unreadable: bool = False

    @property
    def identity(self) -> str:
        made = maker(self.extractor)
        return layout.identity(
            layout.of_reference(
                self.source.listing,
                made["extractor"],
                made["version"],
                made["weights"],
                self.skip_unreadable,
            )
        )

    def missing(self) -> list[ReferenceOrder]:
        """The parts that have no file. Parts of other images or weights are deleted."""
        wanted = {self._part(number): number for number in range(len(self.source.parts))}
        held = set()
        for name in self.folder.names(layout.parts(self.file), ".parquet"):
            if name in wanted and self._is_ours(name):
                held.add(name)
            else:
                self.folder.delete(name)
        return [self._order(name, number) for name, number in wanted.items() if name not in held]

    def finish(self, identity: str | None = None) -> dict[str, Any]:
        """Puts the parts together, and writes the file; returns what it says of itself.

        ``identity`` is kept in it, where there is one. Raises UserError where fewer than two
        images are usable, or the file cannot be written.
        """
        about, content = self._combined(identity)
        try:
            self.folder.write(self.file, content)
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            path = self.folder.path(self.file)
            raise UserError(f"reference {path} cannot be written: {reason}") from None
        return about

    def clear(self) -> None:
        """Removes the parts, once the file is there."""
        self.folder.remove(layout.parts(self.file))

    def _part(self, number: int) -> str:
        return layout.part(self.file, self.extractor.name, number)

    def _is_ours(self, name: str) -> bool:
        try:
            with parquet.open_table(self.folder, name, self.identity):
                return True
        except parquet.DAMAGE:
            return False

    def _order(self, name: str, number: int) -> ReferenceOrder:
        return ReferenceOrder(
            self.source.name,
            number,
            self.source.parts[number],
            self.folder,
            name,
            self.identity,
            self.kind,
            self.weights,
            self.extractor.sha256,
            self.extractor.dimensions,
            self.skip_unreadable,
        )

    def _combined(self, identity: str | None) -> tuple[dict[str, Any], bytes]:
        """What the file says of itself, and its bytes.

        One part at a time, in order: memory grows by a line of text an image.
        """
        sample = NamedSample(SAMPLE)
        lines: list[str] = []
        left_out: list[str] = []

        def features() -> Iterator[np.ndarray]:
            for number in range(len(self.source.parts)):
                table = self._read(self._part(number))
                names, why = table["name"].to_pylist(), table["broken"].to_pylist()
                sums = table["sha256"].to_pylist()
                lines.extend(f"{one}  {name}\n" for one, name in zip(sums, names, strict=True))
                pairs = list(zip(names, why, strict=True))
                left_out.extend(f"{name}: {reason}" for name, reason in pairs if reason)
                rows = _features_of(table, self.extractor.dimensions)
                sample.add([name for name, reason in pairs if not reason], rows)
                yield rows

        try:
            statistics = stream(features())
            statistics.covariance  # noqa: B018  two images are the least
        except UserError as error:
            raise UserError(f"reference {self.source.name}: {error}") from None
        about = maker(self.extractor) | {
            "label": self.extractor.label,
            "recipe": getattr(self.extractor, "recipe", ""),
            "pictures": statistics.count,
            "broken": len(left_out),
            "broken_named": sorted(left_out)[:_BROKEN_NAMED],
            "sha256": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
            "source": self.source.name,
            "tgate_batch": history.software()["versions"].get("tgate-batch"),
        }
        if identity is not None:
            about["identity"] = identity
        content = io.BytesIO()
        said = json.dumps(about, sort_keys=True, ensure_ascii=False)
        kept = of_sample(sample.rows, getattr(self.extractor, "distance", "frechet"))
        statistics.save(content, about=np.array(said), **kept)
        return about, content.getvalue()

    def _read(self, name: str) -> pa.Table:
        try:
            return parquet.read_table(self.folder, name, identity=self.identity)
        except parquet.DAMAGE:
            self.folder.delete(name)
            raise UserError(
                f"{self.folder.path(name)} was damaged or deleted meanwhile; the same command goes "
                "on"
            ) from None


def write_part(order: ReferenceOrder, extract: Extract) -> None:
    """Extracts a part's features, and writes its file: name, sha256, features, broken.

    Raises UserError, naming the image, for one that cannot be read, unless the order skips such.
    """
    names: list[str] = []
    sums: list[str] = []

    def noted() -> Iterator[NamedImage]:
        for name, content in order.part.pictures():
            names.append(name)
            sums.append(hashlib.sha256(content).hexdigest())
            yield name, content

    why: list[str | None] = []
    rows = np.zeros((len(order.part), order.dimensions), np.float32)
    for images in _images_of(order, noted()):
        found = [image if isinstance(image, str) else why_broken(image) for image in images]
        usable = [n for n, reason in enumerate(found) if reason is None]
        if usable:
            places = [len(why) + n for n in usable]
            rows[places] = extract([images[n] for n in usable])
        why += found
    features = pa.FixedSizeListArray.from_arrays(
        pa.array(rows[: len(why)].ravel()),
        order.dimensions,
        mask=pa.array([reason is not None for reason in why], pa.bool_()),
    )
    table = pa.table(
        {
            "name": pa.array(names, pa.string()),
            "sha256": pa.array(sums, pa.string()),
            "features": features,
            "broken": pa.array(why, pa.string()),
        }
    )
    parquet.write_table(order.folder, order.file, table, order.identity, rows_a_group=4096)


def _images_of(order: ReferenceOrder, named: Iterable[NamedImage]) -> Iterator[list[Any]]:
    """``decode_batches``, with errors that say what to do about an image that cannot be read."""
    try:
        yield from decode_batches(named, _BATCH, order.skip_unreadable)
    except UserError as error:
        raise UserError(
            f"reference {order.source}: {error}. Fix: remove the image, or set "
            "score.reference_skip_unreadable: true to leave such images out"
        ) from None


def decode_batches(
    named: Iterable[NamedImage], batch_size: int, skip: bool = False
) -> Iterator[list[Any]]:
    """Batches of images in RGB; threads decode the next one while one is worked on.

    Bytes that are no image raise UserError, naming it; with ``skip`` the reason takes its place.
    """
    named = iter(named)
    decode_one = _decoded_or_reason if skip else _decoded
    with ThreadPoolExecutor() as pool:
        ahead = None
        while chunk := list(islice(named, batch_size)):
            following = pool.map(decode_one, chunk)
            if ahead is not None:
                yield list(ahead)
            ahead = following
        if ahead is not None:
            yield list(ahead)


def _decoded(picture: NamedImage) -> Image.Image:
    name, content = picture
    try:
        return decode_image(content)
    except UserError as error:
        raise UserError(f"{name} {error}") from None


def _decoded_or_reason(picture: NamedImage) -> Image.Image | str:
    try:
        return decode_image(picture[1])
    except UserError as error:
        return str(error)


def _features_of(table: pa.Table, dimensions: int) -> np.ndarray:
    """float32 [n, d] of the images that are not broken."""
    usable = table.filter(pc.is_null(table["broken"]))["features"].combine_chunks()
    return usable.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
