"""Makes a reference's file: features are extracted in parts, then combined into one ``.npz``.

Each part has a file, so a killed job resumes with the missing parts. The same images, extractor and
number of threads give the same bytes, whichever worker extracted which part.
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

from tgate_batch.errors import UserError, one_line
from tgate_batch.metrics.broken_images import why_broken
from tgate_batch.metrics.features import Extractor, distance_name
from tgate_batch.metrics.frechet import stream
from tgate_batch.metrics.sampling import SAMPLE, NamedSample
from tgate_batch.output import history, layout, parquet
from tgate_batch.render.codec import decode_image
from tgate_batch.score.image_parts import ImagePart, NamedImage
from tgate_batch.score.image_sources import ImageSource
from tgate_batch.score.reference import maker, of_sample
from tgate_batch.storage import Folder

_BATCH = 64  # images decoded at once
_BROKEN_NAMED = 20

Extract = Callable[[Sequence[Image.Image]], np.ndarray]


@dataclass(frozen=True)
class ReferenceOrder:
    """An order to extract one part of a source into one file.

    ``extractor`` is the name in the config, ``weights`` its file (None: its default) and ``sha256``
    the digest of the weights.
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
    """The source, the extractor and the target of one reference file.

    ``kind`` is the extractor's name in the config, ``weights`` its file. ``skip_unreadable``
    excludes images that cannot be read instead of raising UserError.
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
        extractor, version, weights = maker(self.extractor).values()
        listing = self.source.listing
        return layout.identity(
            layout.of_reference(listing, extractor, version, weights, self.skip_unreadable)
        )

    def missing(self) -> list[ReferenceOrder]:
        """Returns orders for the parts without a file; deletes parts of other images or weights."""
        wanted = {self._part(number): number for number in range(len(self.source.parts))}
        existing = set()
        for name in self.folder.names(layout.parts(self.file), ".parquet"):
            if name in wanted and self._is_current(name):
                existing.add(name)
            else:
                self.folder.delete(name)
        return [self._order(name, part) for name, part in wanted.items() if name not in existing]

    def finish(self, identity: str | None = None) -> dict[str, Any]:
        """Combines the parts, and writes the file; returns its provenance.

        ``identity`` is stored in it if given. Raises UserError if fewer than two images are usable,
        or the file cannot be written.
        """
        about, content = self._combined(identity)
        try:
            self.folder.write(self.file, content)
        except OSError as error:
            reason = error.strerror or one_line(error)
            path = self.folder.path(self.file)
            raise UserError(f"reference {path} cannot be written: {reason}") from None
        return about

    def clear(self) -> None:
        """Removes the parts, which are not needed once the file exists."""
        self.folder.remove(layout.parts(self.file))

    def _part(self, number: int) -> str:
        return layout.part(self.file, self.extractor.name, number)

    def _is_current(self, name: str) -> bool:
        try:
            with parquet.open_table(self.folder, name, self.identity):
                return True
        except parquet.DAMAGE:
            return False

    def _order(self, name: str, number: int) -> ReferenceOrder:
        source, extractor = self.source, self.extractor
        part = (source.name, number, source.parts[number], self.folder, name, self.identity)
        weights = (self.kind, self.weights, extractor.sha256, extractor.dimensions)
        return ReferenceOrder(*part, *weights, self.skip_unreadable)

    def _combined(self, identity: str | None) -> tuple[dict[str, Any], bytes]:
        """Returns the file's provenance and bytes.

        Reads one part at a time, in order: memory grows by one line of text per image.
        """
        sample = NamedSample(SAMPLE)
        lines: list[str] = []
        excluded: list[str] = []

        def features() -> Iterator[np.ndarray]:
            for number in range(len(self.source.parts)):
                table = self._read(self._part(number))
                names, why = table["name"].to_pylist(), table["broken"].to_pylist()
                sums = table["sha256"].to_pylist()
                lines.extend(f"{one}  {name}\n" for one, name in zip(sums, names, strict=True))
                pairs = list(zip(names, why, strict=True))
                excluded.extend(f"{name}: {reason}" for name, reason in pairs if reason)
                rows = _features_of(table, self.extractor.dimensions)
                sample.add([name for name, reason in pairs if not reason], rows)
                yield rows

        try:
            statistics = stream(features())
            statistics.covariance  # noqa: B018  raises for fewer than two images
        except UserError as error:
            raise UserError(f"reference {self.source.name}: {error}") from None
        about = maker(self.extractor) | {
            "label": self.extractor.label,
            "recipe": getattr(self.extractor, "recipe", ""),
            "pictures": statistics.count,
            "broken": len(excluded),
            "broken_named": sorted(excluded)[:_BROKEN_NAMED],
            "sha256": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
            "source": self.source.name,
            "tgate_batch": history.software()["versions"].get("tgate-batch"),
        }
        if identity is not None:
            about["identity"] = identity
        content = io.BytesIO()
        text = json.dumps(about, sort_keys=True, ensure_ascii=False)
        arrays = of_sample(sample.rows, distance_name(self.extractor))
        statistics.save(content, about=np.array(text), **arrays)
        return about, content.getvalue()

    def _read(self, name: str) -> pa.Table:
        try:
            return parquet.read_table(self.folder, name, identity=self.identity)
        except parquet.DAMAGE:
            self.folder.delete(name)
            raise UserError(
                f"{self.folder.path(name)} was damaged or deleted meanwhile. Fix: rerun the same "
                "command to continue"
            ) from None


def write_part(order: ReferenceOrder, extract: Extract) -> None:
    """Extracts a part's features, and writes its file: name, sha256, features, broken.

    Raises UserError with the name of an image that cannot be read, unless the order skips these.
    """
    names: list[str] = []
    sums: list[str] = []

    def recorded() -> Iterator[NamedImage]:
        for name, content in order.part.images():
            names.append(name)
            sums.append(hashlib.sha256(content).hexdigest())
            yield name, content

    why: list[str | None] = []
    rows = np.zeros((len(order.part), order.dimensions), np.float32)
    for images in _decoded_images(order, recorded()):
        reasons = [image if isinstance(image, str) else why_broken(image) for image in images]
        usable = [n for n, reason in enumerate(reasons) if reason is None]
        if usable:
            rows[[len(why) + n for n in usable]] = extract([images[n] for n in usable])
        why += reasons
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


def _decoded_images(order: ReferenceOrder, named: Iterable[NamedImage]) -> Iterator[list[Any]]:
    """``decode_batches``, whose errors get the source's name and a fix."""
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
    """Yields batches of images in RGB; threads decode the next batch during extraction.

    Raises UserError with the name of an image that cannot be decoded; with ``skip`` the reason
    replaces the image.
    """
    named = iter(named)

    def decode(image: NamedImage) -> Image.Image | str:
        name, content = image
        try:
            return decode_image(content)
        except UserError as error:
            if skip:
                return str(error)
            raise UserError(f"{name} {error}") from None

    with ThreadPoolExecutor() as pool:
        ahead = None
        while chunk := list(islice(named, batch_size)):
            following = pool.map(decode, chunk)
            if ahead is not None:
                yield list(ahead)
            ahead = following
        if ahead is not None:
            yield list(ahead)


def _features_of(table: pa.Table, dimensions: int) -> np.ndarray:
    """Features [n, d], float32, of the images that are not broken."""
    usable = table.filter(pc.is_null(table["broken"]))["features"].combine_chunks()
    return usable.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
