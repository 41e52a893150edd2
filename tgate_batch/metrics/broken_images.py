"""Detects unusable images, which metrics leave out."""

import numpy as np
from PIL import Image


def why_broken(image: Image.Image | np.ndarray) -> str | None:
    """Returns why an image is unusable (empty, not finite, all black, one colour), else None.

    ``image`` is a PIL image or an array [h, w, channels] of any number type. NaN values of a
    denoiser result in a black image in 8 bits.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.size == 0:
        return "empty"
    if not np.isfinite(pixels).all():
        return "not finite"
    channels = pixels.reshape(-1, pixels.shape[-1] if pixels.ndim == 3 else 1)
    if not channels.any():
        return "all black"
    if (channels == channels[0]).all():
        return "one colour"
    return None
