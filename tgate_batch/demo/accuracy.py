"""Checks whether an image of the embedded model matches its caption."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tgate_batch.demo import scenes
from tgate_batch.metrics.base import Column, Measure, PictureMetric


class PromptAccuracy:
    """1 where the checker finds ``aspect`` of the caption in the image, else 0.

    NaN for a caption outside the embedded model's grammar, so other models' prompts measure
    nothing. ``aspect`` is one of ``tgate_batch.demo.scenes.ASPECTS``.
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
        checked = map(scenes.check, images, prompts)
        return np.array(
            [np.nan if answer is None else answer[self._aspect] for answer in checked], float
        )


def _load(weights: str | None, device: str) -> Measure:
    return PromptAccuracy()


METRIC = PictureMetric(
    name="prompt_accuracy",
    column=Column(
        "prompt_accuracy",
        "prompt accuracy",
        "{:.1%}",
        better="higher",
        tables=("pictures", "brief"),
        change_heading="accuracy change",
        explanation=(
            "The share of images that show what their prompt asks for: the right shape, colour "
            "and place, found by measuring the image."
        ),
    ),
    load=_load,
    yes_no=True,
)
