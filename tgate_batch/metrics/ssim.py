"""Structural similarity between an image and the baseline's (Wang et al. 2004)."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.pairs import pairs, tensor


class Ssim:
    """Structural similarity, at most 1 (Wang et al. 2004; torchmetrics' 11-pixel Gaussian)."""

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        def similarity(image: np.ndarray, baseline: np.ndarray) -> float:
            # torchmetrics gives a tuple only where the full map is asked for
            return float(ssim(tensor(image), tensor(baseline), data_range=1.0))  # type: ignore[arg-type]

        return np.array([similarity(*pair) for pair in pairs(images, baselines)], float)


METRIC = ImageMetric(
    name="ssim",
    heading="SSIM",
    pattern="{:.3f}",
    load=lambda weights, device: Ssim(),
    better="higher",
    explanation=(
        "How similar the structures of an image and the baseline's are (structural similarity): "
        "1 for equal images, near 0 for unrelated ones."
    ),
    needs_baseline=True,
    headline=True,
    spread=(0.0, 1.0),
)
