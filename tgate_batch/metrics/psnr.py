"""Peak signal-to-noise ratio between an image and the baseline's, in dB."""

import numpy as np

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.pairs import paired

_SAME_IMAGE = 100.0  # dB


def psnr(image: np.ndarray, baseline: np.ndarray) -> float:
    """Returns the PSNR in dB of two images [h, w, 3] in 0..255; at most 100, so a mean exists."""
    squared = np.square(image.astype(np.float64) - baseline).mean()
    if squared == 0:
        return _SAME_IMAGE
    return min(float(10 * np.log10(255**2 / squared)), _SAME_IMAGE)


METRIC = ImageMetric(
    name="psnr",
    heading="PSNR (dB)",
    pattern="{:.1f}",
    load=lambda weights, device: paired(psnr),
    better="higher",
    explanation=(
        "How close an image is to the baseline's of the same prompt and seed, pixel by pixel "
        "(peak signal-to-noise ratio). Above 40 dB nobody sees a difference; at 20 dB it is "
        "another image of the same thing, which need not be a worse one."
    ),
    needs_baseline=True,
    brief=True,
    headline=True,
    spread=(0.0, 60.0),
)
