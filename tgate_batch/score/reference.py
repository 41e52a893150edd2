"""The set of images that others are measured against, as one ``.npz`` file.

The file holds ``mu``, ``sigma`` and ``count``, as pytorch-fid reads them; ``sample``, features of
some images one by one; and ``about``, what it was made of. pytorch-fid's own files will do too.
"""

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tgate_batch.errors import StorageError, UserError
from tgate_batch.metrics import cmmd, kid
from tgate_batch.metrics.frechet import Statistics
from tgate_batch.metrics.precision_recall import NEIGHBOURS, radii
from tgate_batch.storage import Folder, without_credentials
from tgate_batch.storage.archives import Archive


class ExtractorLike(Protocol):
    """An extractor, or what is known of one: None for what is not."""

    @property
    def name(self) -> str | None: ...
    @property
    def dimensions(self) -> int | None: ...
    @property
    def sha256(self) -> str | None: ...


@dataclass(frozen=True)
class Reference:
    """``sha256`` is that of the ``.npz``; where a run made it itself, that of the images.

    ``sample`` float32 [k, d] is a uniform sample for metrics that need images one by one (KID,
    precision and recall), None for statistics alone. ``about`` is what the file says of itself:
    extractor, version, weights, label, images, broken, sha256, recipe, source.
    """

    name: str
    sha256: str
    statistics: Statistics
    sample: np.ndarray | None
    file: str  # where it can be read, a path or URI
    within: float | None = None  # the kernel's mean over pairs of the sample
    radii: np.ndarray | None = None  # as ``precision_recall.radii`` of the sample
    about: dict[str, Any] = field(default_factory=dict)


def is_file(spec: str) -> bool:
    """True if a path or URI names a reference file, and not a set of images."""
    return (spec.partition("?")[0] if "://" in spec else spec).endswith(".npz")


def load_reference(spec: str, extractor: ExtractorLike) -> Reference:
    """Reads a reference's file, a path or URI, of tgate-batch reference or of pytorch-fid.

    Raises UserError where it cannot be read, or was made with another extractor.
    """
    shown = without_credentials(spec)
    folder, name = Folder.of_file(spec)
    try:
        content = folder.read(name)
    except (OSError, StorageError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"reference {shown} cannot be read: {reason}") from None
    return parse_reference(content, shown, extractor, spec)


def parse_reference(content: bytes, name: str, extractor: ExtractorLike, file: str) -> Reference:
    """A reference from the bytes of its ``file``. Raises as ``load_reference`` does."""
    statistics = Statistics.load(io.BytesIO(content), name)
    beside, about = _beside(content, name)
    if about:
        _check_maker(about, name, extractor)
    if extractor.dimensions not in (None, statistics.dimensions):
        raise UserError(
            f"reference {name} has {statistics.dimensions} dimensions, but {extractor.name} makes "
            f"{extractor.dimensions}; use the extractor it was made with"
        )
    _check_sample(beside, name, statistics.dimensions)
    digest = hashlib.sha256(content).hexdigest()
    within = None if "within" not in beside else float(beside["within"])
    return Reference(
        name, digest, statistics, beside.get("sample"), file, within, beside.get("radii"), about
    )


def of_sample(sample: np.ndarray, distance: str) -> dict[str, np.ndarray]:
    """What a reference's file keeps of its sample [k, d], and what each scoring would compute anew.

    ``distance`` is the extractor's.
    """
    kernel = cmmd.gaussian_kernel if distance == "cmmd" else kid.polynomial
    found = {"sample": sample, "within": np.array(kid.mean_of_pairs(sample, kernel))}
    if distance != "cmmd" and len(sample) > NEIGHBOURS:
        found["radii"] = radii(sample)
    return found


def maker(extractor: ExtractorLike) -> dict[str, Any]:
    """What decides an extractor's features, as ``about`` has it."""
    return {
        "extractor": extractor.name,
        "version": getattr(extractor, "version", 1),
        "weights": extractor.sha256,
    }


def _beside(content: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a file of ours holds beside the statistics: arrays, and what it says of itself."""
    try:
        archive = Archive(content)
        arrays = {key: archive[key] for key in ("sample", "within", "radii") if key in archive}
        about = json.loads(str(archive["about"])) if "about" in archive else {}
    except Exception as error:  # zip, pickle and format faults have no common parent
        reason = " ".join(str(error).split())
        raise UserError(f"{name} cannot be read as a reference: {reason}") from None
    return arrays, about


def _check_sample(beside: dict[str, np.ndarray], name: str, dimensions: int) -> None:
    shapes = {key: list(array.shape) for key, array in beside.items()}
    sample = shapes.get("sample", [0, dimensions])
    wanted = {
        "sample": [sample[0], dimensions] if sample else None,
        "within": [],
        "radii": sample[:1],
    }
    for key, shape in shapes.items():
        if shape != wanted[key] or not np.isfinite(beside[key]).all():
            raise UserError(
                f"reference {name}: its {key} is no finite numbers of shape {wanted[key]}; make it "
                "again with tgate-batch reference"
            )


def _check_maker(about: dict[str, Any], name: str, extractor: ExtractorLike) -> None:
    mine = maker(extractor)
    if any(value is not None and about.get(key) != value for key, value in mine.items()):
        raise UserError(
            f"reference {name} was made with {_said(about)}, and the images are measured with "
            f"{_said(mine)}; give a reference of the same extractor"
        )


def _said(made: dict[str, Any]) -> str:
    weights = str(made.get("weights"))[:8]
    return f"{made.get('extractor')} version {made.get('version')} (weights {weights})"
