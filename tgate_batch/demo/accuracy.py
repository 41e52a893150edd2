"""Checks whether an image of the embedded model matches its caption."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tgate_batch.demo import scenes
from tgate_batch.metrics.base import ImageMetric


class PromptAccuracy:
    """1 if ``aspect`` of the image matches the caption, else 0.

    NaN for a caption outside the embedded model's grammar, so it does not apply to prompts of other
    models. ``aspect`` is one of ``tgate_batch.demo.scenes.ASPECTS``.
    """

    def __init__(self, aspect: str = "all"):
        if aspect not in scenes.ASPECTS:
            raise ValueError(f"unknown aspect {aspect!r}; one of {', '.join(scenes.ASPECTS)}")
        self._aspect = aspect
        self.name = "prompt_accuracy" if aspect == "all" else f"prompt_accuracy_{aspect}"

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        checks = map(scenes.check, images, prompts)
        return np.array([np.nan if each is None else each[self._aspect] for each in checks], float)


METRIC = ImageMetric(
    name="prompt_accuracy",
    heading="prompt accuracy",
    pattern="{:.1%}",
    load=lambda weights, device: PromptAccuracy(),
    better="higher",
    explanation=(
        "The share of images that show what their prompt asks for: the right shape, colour and "
        "position, measured in the pixels."
    ),
    yes_no=True,
    brief=True,
    headline=True,
    change_heading="accuracy change",
)
