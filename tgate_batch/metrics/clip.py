"""How well a picture fits its prompt, by CLIP (Hessel et al. 2021, arXiv:2104.08718)."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from tgate_batch.errors import UserError

_PICTURES_AT_ONCE = 32


class ClipScore:
    """100 times the cosine of CLIP's embeddings of picture and prompt, 0 where it is negative.

    The scale of torchmetrics and of MLPerf's rules (not Hessel's 2.5 times the cosine). Prompts
    are cut at the tokenizer's length, 77 tokens. Scores of two checkpoints do not compare.
    """

    name = "clip_score"
    higher_is_better = True
    needs_baseline = False

    def __init__(self, checkpoint: str, device: str = "cpu"):
        """``checkpoint``: a folder or hub id of a CLIPModel, e.g. openai/clip-vit-large-patch14.

        Raises UserError where it cannot be loaded.
        """
        from transformers import CLIPModel, CLIPProcessor

        try:
            model = CLIPModel.from_pretrained(checkpoint, use_safetensors=True)
            self._processor = CLIPProcessor.from_pretrained(checkpoint)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"CLIP cannot be loaded from {checkpoint}: {reason}") from None
        self._model = model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        scores = [np.empty(0)]
        for start in range(0, len(images), _PICTURES_AT_ONCE):
            chosen = slice(start, start + _PICTURES_AT_ONCE)
            inputs = self._processor(
                text=list(prompts[chosen]),
                images=[image.convert("RGB") for image in images[chosen]],
                return_tensors="pt",
                padding=True,
                truncation=True,
            ).to(self._device)
            embedded = self._model(**inputs)
            cosines = torch.nn.functional.cosine_similarity(
                embedded.image_embeds, embedded.text_embeds
            )
            scores.append(100 * cosines.clamp(min=0).double().cpu().numpy())
        return np.concatenate(scores)
