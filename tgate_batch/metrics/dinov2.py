"""Features of DINOv2, whose Frechet distance agrees with human judgement better than FID.

Stein et al. 2023, arXiv:2306.04675; the code is layer6ai-labs/dgm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tgate_batch.metrics.features import (
    IMAGENET_MEAN,
    IMAGENET_SPREAD,
    CheckpointExtractor,
    normalise,
)
from tgate_batch.metrics.weights import CHECKPOINT_FILES, folder_sha256, load_checkpoint, unlike

if TYPE_CHECKING:
    import torch

_SIDE = 224  # pixels
_PUBLISHED = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}


class DinoV2(CheckpointExtractor):
    """DINOv2's class token after the last layer norm; published: facebook/dinov2-large, 1024.

    Images of any shape are resized to 224x224 by Pillow's antialiased bicubic filter, and
    normalised by ImageNet's mean and spread, like layer6ai-labs/dgm-eval
    ``dgm_eval/models/dinov2.py`` without ``--clean_resize``. Position embeddings are resampled like
    facebookresearch/dinov2 ``dinov2/models/vision_transformer.py``, which that code runs. Any
    checkpoint of the published architecture gets the published label, because the hash of its
    weights is not known.
    """

    name = "dinov2"
    published = "facebook/dinov2-large"
    model_types = ("dinov2",)
    width = "hidden_size"
    batch_sizes = (8, 128)

    def __init__(self, path: str | Path | None = None, device: str = "cpu"):
        """Reads a local folder of a transformers Dinov2Model; downloads nothing.

        Raises UserError if it is missing, damaged or belongs to another network.
        """
        folder, settings = self.open(path)
        self._network = _network(folder, settings).to(device)
        self._device = device
        self.dimensions: int = self._network.config.hidden_size
        self.sha256 = folder_sha256(folder, CHECKPOINT_FILES)
        other = unlike(self._network.config, _PUBLISHED)
        self.label = f"FD-DINOv2-{self.sha256[:8]}" if other else "FD-DINOv2"
        self.note = f"not FD-DINOv2, which is on {self.published}: {other}" if other else None

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        small = [
            image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            for image in images
        ]
        batch = normalise(small, IMAGENET_MEAN, IMAGENET_SPREAD, self._device)
        return self._network(pixel_values=batch).pooler_output.float().cpu().numpy()


def _network(folder: Path, settings: dict[str, Any]) -> Any:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    network = load_checkpoint(
        Dinov2Model, Dinov2Config.from_dict, settings, folder, ("classifier.",)
    )
    embeddings = network.embeddings
    resampled = _resampled(embeddings.position_embeddings, _SIDE // network.config.patch_size)
    embeddings.position_embeddings = torch.nn.Parameter(resampled, requires_grad=False)
    return network


def _resampled(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Resamples positions [1, 1 + n * n, d] to [1, 1 + side * side, d]; the class token is kept.

    The published code resamples by the ratio (side + 0.1) / n, transformers by side / n, which
    differs by up to a fifth of a cell.
    """
    import torch

    count = round((positions.shape[1] - 1) ** 0.5)
    if count == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (count, count)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=(side + 0.1) / count, mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
