"""How far a picture is from the baseline's picture of the same prompt and seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.metrics.weights import load_weights

_SAME_PICTURE = 100.0  # dB


class Psnr:
    """Peak signal-to-noise ratio, dB; equal pictures count as 100 dB, so that a mean exists."""

    name = "psnr"
    higher_is_better = True
    needs_baseline = True

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        return np.array([_psnr(*pair) for pair in _pairs(images, baselines)])


class Ssim:
    """Structural similarity, at most 1 (Wang et al. 2004; torchmetrics' 11-pixel Gaussian)."""

    name = "ssim"
    higher_is_better = True
    needs_baseline = True

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        return np.array(
            [
                float(ssim(_tensor(image), _tensor(baseline), data_range=1.0))
                for image, baseline in _pairs(images, baselines)
            ]
        )


class Lpips:
    """Learned perceptual distance, 0 for equal pictures (Zhang et al. 2018, AlexNet).

    The layer weights come with torchmetrics; the backbone's are a file of torchvision's AlexNet
    (``alexnet-owt-7be5be79.pth``), which has to be given.
    """

    name = "lpips"
    higher_is_better = False
    needs_baseline = True

    def __init__(self, path: str | Path, device: str = "cpu"):
        """Raises UserError where the file is missing or holds something else."""
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
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is not torchvision's AlexNet: {reason}") from None
        self._network.to(device)

    @torch.inference_mode()
    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        pairs = [
            [_tensor(pixels).to(self._device) for pixels in pair]
            for pair in _pairs(images, baselines)
        ]
        return np.array([float(self._network(*pair, normalize=True)) for pair in pairs])


def _psnr(image: np.ndarray, baseline: np.ndarray) -> float:
    squared = np.square(image.astype(np.float64) - baseline).mean()
    if squared == 0:
        return _SAME_PICTURE
    return min(float(10 * np.log10(255**2 / squared)), _SAME_PICTURE)


def _pairs(
    images: Sequence[Image.Image], baselines: Sequence[Image.Image] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    if baselines is None or len(images) != len(baselines):
        found = 0 if baselines is None else len(baselines)
        raise ValueError(f"{len(images)} images need as many of the baseline, found {found}")
    pairs = []
    for image, baseline in zip(images, baselines, strict=True):
        if image.size != baseline.size:
            raise UserError(
                f"a picture of {image.width}x{image.height} cannot be compared with a baseline of "
                f"{baseline.width}x{baseline.height}; render both arms at one size"
            )
        pairs.append((np.asarray(image.convert("RGB")), np.asarray(baseline.convert("RGB"))))
    return pairs


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [h, w, 3] -> float32 [1, 3, h, w] in 0..1."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
