"""How well an image fits its prompt, by CLIP (Hessel et al. 2021, arXiv:2104.08718)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.metrics.base import ImageMetric, Measure
from tgate_batch.metrics.part_files import PartFiles, laid_out, listed
from tgate_batch.metrics.weights import folder_sha256

_PICTURES_AT_ONCE = 32
_READ = ("*.json", "*.txt", "*.safetensors")  # files of a checkpoint that loading reads


class ClipScore:
    """100 times the cosine of CLIP's embeddings of image and prompt, 0 where it is negative.

    The scale of torchmetrics and of MLPerf's rules (not Hessel's 2.5 times the cosine). Prompts
    are cut at the tokenizer's length, 77 tokens. Scores of two checkpoints do not compare.
    """

    def __init__(self, checkpoint: str, device: str = "cpu"):
        """``checkpoint``: a folder or hub id of a CLIPModel, e.g. openai/clip-vit-large-patch14.

        Raises UserError where it cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor

        read = _listed(checkpoint)
        try:
            with laid_out(read.links()) as folder:
                model = CLIPModel.from_pretrained(folder, use_safetensors=True)
                self._processor = CLIPProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"CLIP cannot be loaded from {checkpoint}: {reason}") from None
        self._model = model.eval().to(device)
        self._device = device

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        import torch

        scores = [np.empty(0)]
        with torch.inference_mode():
            for start in range(0, len(images), _PICTURES_AT_ONCE):
                chosen = slice(start, start + _PICTURES_AT_ONCE)
                scores.append(self._scores(images[chosen], prompts[chosen]))
        return np.concatenate(scores)

    def _scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        import torch

        inputs = self._processor(
            text=list(prompts),
            images=[image.convert("RGB") for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self._device)
        embedded = self._model(**inputs)
        cosines = torch.nn.functional.cosine_similarity(embedded.image_embeds, embedded.text_embeds)
        return 100 * cosines.clamp(min=0).double().cpu().numpy()


def fingerprint(checkpoint: str) -> str:
    """``folder_sha256`` of the files that loading reads.

    A hub id stands for its files in the local hub cache; what is not there is downloaded. Raises
    UserError where there are no such files.
    """
    _listed(checkpoint)
    folder = _folder(checkpoint)
    try:
        return folder_sha256(folder, _READ)
    except UserError as error:
        raise UserError(f"CLIP cannot be loaded from {checkpoint}: {error}") from None


def _listed(checkpoint: str) -> PartFiles:
    """All that loading may read; each file is one of those that the fingerprint has."""
    folder = _folder(checkpoint)
    try:
        return listed(folder)
    except UserError as error:
        raise UserError(f"CLIP cannot be loaded from {checkpoint}: {error}") from None


def _folder(checkpoint: str) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(snapshot_download(checkpoint, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(checkpoint, allow_patterns=list(_READ)))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"CLIP cannot be loaded from {checkpoint}: {reason}") from None


def _load(weights: str | None, device: str) -> Measure:
    assert weights is not None  # its key under score.weights switches the metric on
    return ClipScore(weights, device)


METRIC = ImageMetric(
    name="clip_score",
    heading="CLIP score",
    pattern="{:.2f}",
    load=_load,
    better="higher",
    explanation=(
        "How well an image fits its prompt, judged by the network CLIP: 100 times the cosine of "
        "the two embeddings, about 20 for a poor fit and 35 for a good one."
    ),
    brief=True,
    headline=True,
    change_heading="CLIP change",
    weights="clip",
    weights_are="a CLIPModel (a folder or a hub id)",
    may_be_hub_id=True,
    spread=(-10.0, 10.0),
    fingerprint=fingerprint,
)
