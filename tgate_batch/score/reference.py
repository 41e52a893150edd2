"""The set of pictures that others are measured against: read, named and hashed.

A reference is statistics (``.npz`` as pytorch-fid writes them), a folder of pictures, or a folder
of Parquet rows such as a run writes, on a disk or in an object store.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from PIL import Image

from tgate_batch.demo import pictures
from tgate_batch.errors import UserError
from tgate_batch.metrics.broken import broken
from tgate_batch.metrics.features import Extractor
from tgate_batch.metrics.frechet import Statistics, stream
from tgate_batch.metrics.reservoir import Reservoir
from tgate_batch.output.parquet import read_batches
from tgate_batch.render.codec import decode
from tgate_batch.storage import Folder, without_credentials

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Reference:
    """``sha256`` is that of the ``.npz``, or of all pictures' names and bytes in order.

    ``features`` float32 [k, d] is a uniform sample for metrics that need pictures one by one
    (KID, precision and recall), None for statistics alone. ``broken`` lists ("name: why")
    pictures that were kept out.
    """

    name: str
    sha256: str
    statistics: Statistics
    features: np.ndarray | None
    broken: tuple[str, ...] = ()


def load_reference(
    spec: str, extractor: Extractor, batch_size: int = 50, keep: int = 10_000
) -> Reference:
    """Reads a reference set; ``spec`` is a path or URI of an ``.npz`` file or of a folder.

    ``keep`` is how many features stay in memory. Raises UserError where nothing usable is found,
    or the statistics are of another extractor's dimensions.
    """
    if spec.endswith(".npz"):
        return _load_statistics(spec, extractor)
    folder = Folder(spec)
    if tables := folder.names("", ".parquet"):
        arms = sorted({str(PurePosixPath(table).parent) for table in tables})
        if len(arms) > 1:
            raise UserError(
                f"reference {spec} holds several sets ({arms[0]}, {arms[1]}, ...); name one of them"
            )
        named = _parquet_pictures(folder, tables)
    else:
        files = [n for n in folder.names("") if PurePosixPath(n).suffix.lower() in _SUFFIXES]
        if not files:
            raise UserError(f"reference {spec} is no .npz and no folder with pictures or Parquet")
        named = ((name, folder.read(name)) for name in files)
    return reference_of(without_credentials(spec), named, extractor, batch_size, keep)


def reference_of(
    name: str,
    named: Iterable[tuple[str, bytes]],
    extractor: Extractor,
    batch_size: int = 50,
    keep: int = 10_000,
) -> Reference:
    """A reference of pictures that come as (name, encoded bytes), in memory of a few batches."""
    digest = hashlib.sha256()
    sample = Reservoir(keep)
    left_out: list[str] = []

    def hashed() -> Iterator[tuple[str, bytes]]:
        for picture, content in named:
            for part in (picture.encode(), content):
                digest.update(len(part).to_bytes(8, "big") + part)
            yield picture, content

    def features() -> Iterator[np.ndarray]:
        for batch in decoded(hashed(), batch_size):
            usable = []
            for picture, image in batch:
                if why := broken(image):
                    left_out.append(f"{picture}: {why}")
                else:
                    usable.append(image)
            rows = extractor(usable)
            sample.add(rows)
            yield rows

    try:
        statistics = stream(features())
        statistics.covariance  # noqa: B018  two pictures are the least
    except UserError as error:
        raise UserError(f"reference {name}: {error}") from None
    return Reference(name, digest.hexdigest(), statistics, sample.rows, tuple(left_out))


def drawn_reference(captions: Iterable[str], extractor: Extractor, each: int = 1) -> Reference:
    """The embedded model's world itself: ``each`` drawn pictures of every caption.

    Raises UserError for a caption outside its grammar.
    """

    def drawings() -> Iterator[tuple[str, bytes]]:
        for number, caption in enumerate(captions):
            for seed in range(number * each, (number + 1) * each):
                stream = io.BytesIO()
                try:
                    pictures.draw(caption, seed).save(stream, "PNG", compress_level=1)
                except ValueError as error:
                    raise UserError(f"reference drawn: {error}") from None
                yield f"{seed} {caption}", stream.getvalue()

    return reference_of("drawn", drawings(), extractor)


def decoded(
    named: Iterable[tuple[str, bytes]], batch_size: int
) -> Iterator[list[tuple[str, Image.Image]]]:
    """Batches of (name, picture in RGB); threads decode the next one while one is worked on.

    Raises UserError for bytes that are no picture.
    """
    named = iter(named)
    with ThreadPoolExecutor() as pool:
        ahead = None
        while chunk := list(islice(named, batch_size)):
            following = pool.map(_decode, chunk)
            if ahead is not None:
                yield list(ahead)
            ahead = following
        if ahead is not None:
            yield list(ahead)


def _decode(picture: tuple[str, bytes]) -> tuple[str, Image.Image]:
    name, content = picture
    try:
        return name, decode(content)
    except UserError as error:
        raise UserError(f"{name} {error}") from None


def _parquet_pictures(folder: Folder, tables: list[str]) -> Iterator[tuple[str, bytes]]:
    for table in tables:
        try:
            for batch in read_batches(folder, table, ["prompt_id", "image_number", "image"]):
                for row in batch.to_pylist():
                    if row["image"] is not None:
                        yield f"{row['prompt_id']}/{row['image_number']}", row["image"]["bytes"]
        except (pa.ArrowException, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder.path(table)} cannot be read: {reason}") from None


def _load_statistics(spec: str, extractor: Extractor) -> Reference:
    parent, slash, name = spec.rpartition("/")
    folder = Folder(parent + slash or ".")
    try:
        content = folder.read(name)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"reference {spec} cannot be read: {reason}") from None
    statistics = Statistics.load(io.BytesIO(content), spec)
    if statistics.dimensions != extractor.dimensions:
        raise UserError(
            f"reference {spec} has {statistics.dimensions} dimensions, but {extractor.name} makes "
            f"{extractor.dimensions}; use the extractor it was made with"
        )
    digest = hashlib.sha256(content).hexdigest()
    return Reference(without_credentials(spec), digest, statistics, None)
