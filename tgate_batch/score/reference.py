"""A reference set of images, as one ``.npz`` file.

The file has ``mu``, ``sigma`` and ``count``, as pytorch-fid reads them; ``sample``, the features of
some single images; and ``about``, its provenance. Files of pytorch-fid itself can be read, too.
"""

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tgate_batch.errors import StorageError, UserError, one_line
from tgate_batch.metrics import cmmd, kid
from tgate_batch.metrics.features import version_of
from tgate_batch.metrics.frechet import Statistics
from tgate_batch.metrics.precision_recall import NEIGHBOURS, radii
from tgate_batch.storage import Folder, without_credentials
from tgate_batch.storage.archives import Archive


class ExtractorLike(Protocol):
    """An extractor, or the known properties of one that is not loaded; unknown ones are None."""

    @property
    def name(self) -> str | None: ...
    @property
    def dimensions(self) -> int | None: ...
    @property
    def sha256(self) -> str | None: ...


@dataclass(frozen=True)
class Reference:
    """A reference set's statistics and sample of features.

    ``sha256`` is that of the ``.npz``, or of the images if a run made the file itself. ``sample``
    float32 [k, d] is a uniform sample for metrics of single images (KID, precision and recall);
    None if the file has only statistics. ``about`` has the file's provenance: extractor, version,
    weights, label, pictures, broken, sha256, recipe, source.
    """

    name: str
    sha256: str
    statistics: Statistics
    sample: np.ndarray | None
    file: str  # a path or URI
    within: float | None = None  # mean of the kernel over pairs of the sample
    radii: np.ndarray | None = None  # as ``precision_recall.radii`` of the sample
    about: dict[str, Any] = field(default_factory=dict)


def is_file(spec: str) -> bool:
    """True if a path or URI names a reference file, and not a set of images."""
    return (spec.partition("?")[0] if "://" in spec else spec).endswith(".npz")


def load_reference(spec: str, extractor: ExtractorLike) -> Reference:
    """Reads a file of `tgate-batch reference` or of pytorch-fid, by its path or URI.

    Raises UserError if it cannot be read, or was made with another extractor.
    """
    shown = without_credentials(spec)
    folder, name = Folder.of_file(spec)
    try:
        content = folder.read(name)
    except (OSError, StorageError) as error:
        raise UserError(f"reference {shown} cannot be read: {one_line(error)}") from None
    return parse_reference(content, shown, extractor, spec)


def parse_reference(content: bytes, name: str, extractor: ExtractorLike, file: str) -> Reference:
    """Parses the bytes of a reference's ``file``. Raises UserError like ``load_reference``."""
    statistics = Statistics.load(io.BytesIO(content), name)
    arrays, about = _own_entries(content, name)
    own = maker(extractor)
    if about and any(value is not None and about.get(key) != value for key, value in own.items()):
        raise UserError(
            f"reference {name} was made with {_described(about)}, and the images are measured with "
            f"{_described(own)}. Fix: give a reference of the same extractor"
        )
    if extractor.dimensions not in (None, statistics.dimensions):
        raise UserError(
            f"reference {name} has {statistics.dimensions} dimensions, but {extractor.name} has "
            f"{extractor.dimensions}. Fix: use the extractor that it was made with"
        )
    _check_sample(arrays, name, statistics.dimensions)
    digest = hashlib.sha256(content).hexdigest()
    within = None if "within" not in arrays else float(arrays["within"])
    return Reference(
        name, digest, statistics, arrays.get("sample"), file, within, arrays.get("radii"), about
    )


def of_sample(sample: np.ndarray, distance: str) -> dict[str, np.ndarray]:
    """Returns the arrays that a file has for its sample [k, d], so scoring need not compute them.

    ``distance`` is the extractor's.
    """
    kernel = cmmd.gaussian_kernel if distance == "cmmd" else kid.polynomial
    arrays = {"sample": sample, "within": np.array(kid.mean_of_pairs(sample, kernel))}
    if distance != "cmmd" and len(sample) > NEIGHBOURS:
        arrays["radii"] = radii(sample)
    return arrays


def maker(extractor: ExtractorLike) -> dict[str, Any]:
    """Returns everything that decides an extractor's features, as ``about`` has it."""
    version = version_of(extractor)
    return {"extractor": extractor.name, "version": version, "weights": extractor.sha256}


def _own_entries(content: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the provenance that our files have in addition to pytorch-fid's entries."""
    try:
        archive = Archive(content)
        arrays = {key: archive[key] for key in ("sample", "within", "radii") if key in archive}
        about = json.loads(str(archive["about"])) if "about" in archive else {}
    except Exception as error:  # zip, pickle and format errors have no common base class
        raise UserError(f"{name} cannot be read as a reference: {one_line(error)}") from None
    return arrays, about


def _check_sample(arrays: dict[str, np.ndarray], name: str, dimensions: int) -> None:
    shapes = {key: list(array.shape) for key, array in arrays.items()}
    sample = shapes.get("sample", [0, dimensions])
    wanted = {
        "sample": [sample[0], dimensions] if sample else None,
        "within": [],
        "radii": sample[:1],
    }
    for key, shape in shapes.items():
        if shape != wanted[key] or not np.isfinite(arrays[key]).all():
            raise UserError(
                f"reference {name}: its {key} is not finite numbers of shape {wanted[key]}. Fix: "
                "make it again with tgate-batch reference"
            )


def _described(maker: dict[str, Any]) -> str:
    weights = str(maker.get("weights"))[:8]
    return f"{maker.get('extractor')} version {maker.get('version')} (weights {weights})"
