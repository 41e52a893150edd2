"""Helpers for metrics that compare an image with the baseline's of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.metrics.base import Measure

if TYPE_CHECKING:
    import torch


def paired(figure: Callable[[np.ndarray, np.ndarray], float]) -> Measure:
    """Makes a measure of a function of an image and the baseline's, as uint8 [h, w, 3] each."""

    def measure(
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        return np.array([figure(*pair) for pair in pairs(images, baselines)], float)

    return measure


def pairs(
    images: Sequence[Image.Image], baselines: Sequence[Image.Image] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (image, baseline's image) as uint8 [h, w, 3] each.

    Raises ValueError if the numbers of images differ, UserError if the sizes of a pair do.
    """
    count = 0 if baselines is None else len(baselines)
    if baselines is None or len(images) != count:
        raise ValueError(f"{len(images)} images need as many of the baseline, got {count}")
    rgb = []
    for image, baseline in zip(images, baselines, strict=True):
        if image.size != baseline.size:
            raise UserError(
                f"an image of {image.width}x{image.height} cannot be compared with a baseline of "
                f"{baseline.width}x{baseline.height}. Fix: render both arms at the same size"
            )
        rgb.append((np.asarray(image.convert("RGB")), np.asarray(baseline.convert("RGB"))))
    return rgb


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """Converts uint8 [h, w, 3] to float32 [1, 3, h, w] in 0..1."""
    import torch

    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
