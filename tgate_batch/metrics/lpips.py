"""LPIPS: learned perceptual distance to the baseline's image (Zhang et al. 2018)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tgate_batch.errors import UserError, one_line
from tgate_batch.metrics.base import ImageMetric, Measure
from tgate_batch.metrics.pairs import pairs, tensor
from tgate_batch.metrics.weights import load_weights


class Lpips:
    """Learned perceptual distance, 0 for equal images (Zhang et al. 2018, AlexNet).

    The layer weights come with torchmetrics; the backbone's weights are a file of torchvision's
    AlexNet (``alexnet-owt-7be5be79.pth``).
    """

    def __init__(self, path: str | Path, device: str = "cpu"):
        """Raises UserError if the file is missing or is not AlexNet."""
        from torchmetrics.functional.image.lpips import _LPIPS

        self._device = device
        self._network = _LPIPS(net="alex", pnet_rand=True)
        backbone = self._network.net
        weights = load_weights(path)
        try:
            # torchmetrics cuts AlexNet into slices that keep its layer numbers: slice2.3 is 3.
            backbone.load_state_dict(
                {key: weights[f"features.{key.split('.', 1)[1]}"] for key in backbone.state_dict()}
            )
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path} is not torchvision's AlexNet: {one_line(error)}") from None
        self._network.to(device)

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        import torch

        def distance(image: np.ndarray, baseline: np.ndarray) -> float:
            pair = (tensor(pixels).to(self._device) for pixels in (image, baseline))
            return float(self._network(*pair, normalize=True))

        with torch.inference_mode():
            return np.array([distance(*pair) for pair in pairs(images, baselines)], float)


def _load(weights: str | None, device: str) -> Measure:
    assert weights is not None  # its key under score.weights switches the metric on
    return Lpips(weights, device)


METRIC = ImageMetric(
    name="lpips",
    heading="LPIPS",
    pattern="{:.3f}",
    load=_load,
    better="lower",
    explanation=(
        "How different an image and the baseline's look to a network that was fitted to human "
        "judgement: 0 for equal images, about 0.7 for unrelated ones."
    ),
    needs_baseline=True,
    headline=True,
    weights="lpips",
    weights_are="AlexNet's weights",
    spread=(0.0, 1.0),
)
