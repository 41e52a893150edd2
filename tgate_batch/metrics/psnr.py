"""Peak signal-to-noise ratio between an image and the baseline's, in dB."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.pairs import pairs

_SAME_PICTURE = 100.0  # dB


class Psnr:
    """Peak signal-to-noise ratio, dB; equal images count as 100 dB, so that a mean exists."""

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        return np.array([_psnr(*pair) for pair in pairs(images, baselines)], float)


def _psnr(image: np.ndarray, baseline: np.ndarray) -> float:
    squared = np.square(image.astype(np.float64) - baseline).mean()
    if squared == 0:
        return _SAME_PICTURE
    return min(float(10 * np.log10(255**2 / squared)), _SAME_PICTURE)


METRIC = ImageMetric(
    name="psnr",
    heading="PSNR (dB)",
    pattern="{:.1f}",
    load=lambda weights, device: Psnr(),
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
