"""The protocol of metrics that give one number a picture."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image


class PictureMetric(Protocol):
    """Images and prompts in, one number a picture out.

    ``name`` is the metric's key in the report; ``higher_is_better`` says how to read it;
    ``needs_baseline`` whether the baseline's pictures of the same prompts and seeds are compared.
    """

    name: str
    higher_is_better: bool
    needs_baseline: bool

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        """float64 [n]: a number for each image, NaN where the metric has nothing to say."""
        ...
