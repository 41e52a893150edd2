"""Structural similarity between an image and the baseline's (Wang et al. 2004)."""

import numpy as np

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.pairs import paired, tensor


def ssim(image: np.ndarray, baseline: np.ndarray) -> float:
    """Returns the SSIM of two images, uint8 [h, w, 3]; at most 1 (11-pixel Gaussian window)."""
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    # torchmetrics returns a tuple only if the full map is requested
    return float(similarity(tensor(image), tensor(baseline), data_range=1.0))  # type: ignore[arg-type]


METRIC = ImageMetric(
    name="ssim",
    heading="SSIM",
    pattern="{:.3f}",
    load=lambda weights, device: paired(ssim),
    better="higher",
    explanation=(
        "How similar the structures of an image and the baseline's are (structural similarity): "
        "1 for equal images, near 0 for unrelated ones."
    ),
    needs_baseline=True,
    headline=True,
    spread=(0.0, 1.0),
)
