"""CLIP score: how well an image fits its prompt (Hessel et al. 2021, arXiv:2104.08718)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from tgate_batch.errors import UserError, one_line
from tgate_batch.metrics.base import ImageMetric, Measure
from tgate_batch.metrics.part_files import laid_out, listed
from tgate_batch.metrics.weights import folder_sha256

_BATCH = 32
_READ = ("*.json", "*.txt", "*.safetensors")  # files of a checkpoint that are read


class ClipScore:
    """100 times the cosine of CLIP's embeddings of image and prompt, at least 0.

    This is the scale of torchmetrics and of MLPerf's rules (not Hessel's 2.5 times the cosine).
    Prompts are truncated at the tokenizer's length, 77 tokens. Scores of different checkpoints are
    not comparable.
    """

    def __init__(self, checkpoint: str, device: str = "cpu"):
        """Loads a CLIPModel from a folder or hub id, e.g. openai/clip-vit-large-patch14.

        Raises UserError if it cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor

        with _loading(checkpoint):
            files = listed(_folder(checkpoint))
            with laid_out(files.links()) as folder:
                model = CLIPModel.from_pretrained(folder, use_safetensors=True)
                self._processor = CLIPProcessor.from_pretrained(folder, trust_remote_code=False)
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
            for start in range(0, len(images), _BATCH):
                chosen = slice(start, start + _BATCH)
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
    """Returns ``folder_sha256`` of the files that loading reads.

    For a hub id these are the files in the local hub cache; missing ones are downloaded. Raises
    UserError if there are none.
    """
    with _loading(checkpoint):
        folder = _folder(checkpoint)
        listed(folder)  # raises for files that loading would refuse
        return folder_sha256(folder, _READ)


@contextmanager
def _loading(checkpoint: str) -> Iterator[None]:
    try:
        yield
    except (UserError, OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error) if isinstance(error, UserError) else one_line(error, 200)
        raise UserError(f"CLIP cannot be loaded from {checkpoint}: {reason}") from None


def _folder(checkpoint: str) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(checkpoint, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(snapshot_download(checkpoint, allow_patterns=list(_READ)))


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
