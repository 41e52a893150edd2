"""An extractor's properties as plain data, and the number of images that its distance needs."""

from __future__ import annotations

from dataclasses import dataclass

from tgate_batch.metrics.features import Extractor, distance_name, version_of

IMAGES_PER_DIMENSION = 3  # with fewer images the bias of a Frechet distance hides its changes


@dataclass(frozen=True)
class ExtractorFacts:
    """An extractor's properties, without its network; ``kind`` is its distance."""

    name: str
    dimensions: int
    label: str
    note: str | None
    sha256: str
    version: int
    kind: str  # "frechet" or "cmmd"

    @classmethod
    def of(cls, extractor: Extractor) -> ExtractorFacts:
        """Reads the properties of a loaded extractor, with the defaults of :class:`Extractor`."""
        return cls(
            extractor.name,
            extractor.dimensions,
            extractor.label,
            extractor.note,
            extractor.sha256,
            version_of(extractor),
            distance_name(extractor),
        )


def enough_images(count: int, dimensions: int) -> bool:
    """True if changes of a Frechet distance of so many images are meaningful."""
    return count >= IMAGES_PER_DIMENSION * dimensions


def not_comparable(count: int, dimensions: int) -> str:
    """Returns why a Frechet distance of so few images is not compared, and how many it needs."""
    needed = IMAGES_PER_DIMENSION * dimensions
    return f"not comparable: {count / dimensions:.2f} images per dimension, {needed:,} needed"
