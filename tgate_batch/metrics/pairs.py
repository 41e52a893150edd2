"""Helpers for metrics that compare an image with the baseline's of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tgate_batch.errors import UserError

if TYPE_CHECKING:
    import torch


def pairs(
    images: Sequence[Image.Image], baselines: Sequence[Image.Image] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, baseline's image) as uint8 [h, w, 3] each.

    Raises ValueError where the numbers of images differ, UserError where the sizes of a pair do.
    """
    if baselines is None or len(images) != len(baselines):
        found = 0 if baselines is None else len(baselines)
        raise ValueError(f"{len(images)} images need as many of the baseline, found {found}")
    found_pairs = []
    for image, baseline in zip(images, baselines, strict=True):
        if image.size != baseline.size:
            raise UserError(
                f"an image of {image.width}x{image.height} cannot be compared with a baseline of "
                f"{baseline.width}x{baseline.height}. Fix: render both arms at the same size"
            )
        found_pairs.append((np.asarray(image.convert("RGB")), np.asarray(baseline.convert("RGB"))))
    return found_pairs


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [h, w, 3] -> float32 [1, 3, h, w] in 0..1."""
    import torch

    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
