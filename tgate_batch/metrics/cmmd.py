"""CMMD: maximum mean discrepancy of CLIP's image embeddings (Jayasumana et al. 2024).

arXiv:2401.09603; the code is google-research/google-research ``cmmd/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tgate_batch.metrics.features import CheckpointExtractor, normalise
from tgate_batch.metrics.weights import CHECKPOINT_FILES, folder_sha256, load_checkpoint, unlike

_SIGMA = 10
SCALE = 1000
_BLOCK = 2048  # rows at once: a kernel of 32 MiB

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_SPREAD = (0.26862954, 0.26130258, 0.27577711)
_PUBLISHED = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
_NOT_OF_IMAGES = (
    "text_model.",
    "text_projection.",
    "logit_scale",
    "vision_model.embeddings.position_ids",  # of older versions of transformers: 0, 1, 2, ...
)


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """Returns 1000 times the squared maximum mean discrepancy of features [n, d] and [m, d].

    Computed like google-research/google-research ``cmmd/distance.py``, but in float64. Pairs of a
    point with itself are included, so it is never negative, and larger for smaller sets. n and m
    are at least 1.
    """
    return SCALE * (_mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b))


def gaussian_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns ``exp(-|x - y|^2 / (2 * 10^2))``, float64 [n, m], of rows x [n, d] and y [m, d]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.exp(squares.clip(min=0) / (-2 * _SIGMA**2))


def _mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
    total = sum(
        gaussian_kernel(a[row : row + _BLOCK], b[column : column + _BLOCK]).sum()
        for row in range(0, len(a), _BLOCK)
        for column in range(0, len(b), _BLOCK)
    )
    return float(total) / (len(a) * len(b))


class ClipVision(CheckpointExtractor):
    """CLIP's image embeddings, of length 1; published: 768 of ViT-L/14 at 336 pixels.

    That is openai/clip-vit-large-patch14-336. The central square of an image is resized to the
    checkpoint's input by Pillow's antialiased bicubic filter, like google-research/google-research
    ``cmmd/io_util.py``, and normalised by CLIP's mean and spread. Embeddings are divided by their
    length, like google-research/scenic ``scenic/projects/baselines/clip/layers.py``, which
    ``cmmd/embedding.py`` calls. Any checkpoint of the published architecture gets the published
    label, because the hash of its weights is not known.
    """

    name = "cmmd"
    distance = "cmmd"
    published = "openai/clip-vit-large-patch14-336"
    model_types = ("clip", "clip_vision_model")
    width = "projection_dim"
    batch_sizes = (8, 64)

    def __init__(self, path: str | Path | None = None, device: str = "cpu"):
        """Reads a local folder of a transformers CLIPModel or its vision tower; downloads nothing.

        Raises UserError if it is missing, damaged or belongs to another network.
        """
        folder, settings = self.open(path)
        self._network = _network(folder, settings).to(device)
        self._device = device
        config = self._network.config
        self._side: int = config.image_size
        self.dimensions: int = config.projection_dim
        self.sha256 = folder_sha256(folder, CHECKPOINT_FILES)
        other = unlike(config, _PUBLISHED)
        self.label = f"CMMD-{self.sha256[:8]}" if other else "CMMD"
        self.note = f"not CMMD, which is on {self.published}: {other}" if other else None

    def _features(self, images: Sequence[Image.Image]) -> np.ndarray:
        small = [_square(image.convert("RGB"), self._side) for image in images]
        batch = normalise(small, _MEAN, _SPREAD, self._device)
        embedded = self._network(pixel_values=batch).image_embeds.float()
        return (embedded / embedded.norm(dim=-1, keepdim=True)).cpu().numpy()


def _square(image: Image.Image, side: int) -> Image.Image:
    """Crops the central square and resizes it; an odd pixel is cut at the right or the bottom."""
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    middle = image.crop((left, top, left + edge, top + edge))
    return middle.resize((side, side), Image.Resampling.BICUBIC)


def _network(folder: Path, settings: dict[str, Any]) -> Any:
    from transformers import CLIPVisionModelWithProjection

    return load_checkpoint(
        CLIPVisionModelWithProjection, _vision_config, settings, folder, _NOT_OF_IMAGES
    )


def _vision_config(settings: dict[str, Any]) -> Any:
    from transformers import CLIPConfig, CLIPVisionConfig

    if settings["model_type"] == "clip_vision_model":
        return CLIPVisionConfig.from_dict(settings)
    both = CLIPConfig.from_dict(settings)
    both.vision_config.projection_dim = both.projection_dim  # a CLIPModel uses this one
    return both.vision_config
