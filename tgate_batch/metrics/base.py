"""The contract of a per-image metric.

A metric is an ``ImageMetric`` under the name ``METRIC`` in its own module, whose dotted name is in
``tgate_batch.score.registry.MODULES`` or among a config's ``plugins``. A minimal one, which is
measured for every image, has a column in the report, and may be bounded by ``thresholds``::

    import numpy as np

    from tgate_batch.metrics.base import ImageMetric


    def load(weights, device):
        return lambda images, prompts, baselines=None: np.array([np.mean(i) for i in images])


    METRIC = ImageMetric("brightness", "brightness", "{:.1f}", load, better="higher")

The module is imported when a config is checked and when a report is written, so it imports torch
only inside ``load``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from tgate_batch.metrics.weights import file_sha256


class Measure(Protocol):
    """Computes one number per image."""

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        """Returns float64 [n]: a number for each image, NaN if the metric does not apply to it.

        ``baselines`` are the baseline's images of the same prompts and seeds, for a metric that
        needs them.
        """
        ...


@dataclass(frozen=True)
class ImageMetric:
    """A metric that gives one number per image.

    - ``name``: its key in report.json, in the measured files and in ``thresholds``.
    - ``heading``, ``pattern`` (for ``str.format``), ``better`` (None if neither direction is) and
      ``explanation`` (a sentence or two for readers who know no paper): its column in the report.
    - ``load``: takes the weights' path or id (or None) and the device, and returns the measure.
      Raises UserError if the weights are missing or belong to something else.
    - ``needs_baseline``: it compares with the baseline's images. Its mean is under ``paired`` in
      report.json.
    - ``yes_no``: the number is 1 or 0. Its change also counts the images that gained and lost.
    - ``brief``: the terminal's table shows it, too.
    - ``headline``: its change may enter the verdict sentence, its values may order the gallery.
    - ``change_heading``: the heading of its mean change; None: tables do not show the change.
    - ``weights``: the key under ``score.weights`` that switches it on; None: it needs none and is
      always measured.
    - ``weights_are``: what to give there, in words; ``may_be_hub_id``: a hub id is accepted, so no
      file has to exist before the run.
    - ``spread``: the range of the plotted histogram: of its values if it compares with the
      baseline, else of its changes. None: no plot.
    - ``version``: raise it when equal images get other numbers; they are then measured again.
    - ``fingerprint``: takes the weights' path or id, and returns a hexadecimal sha256 of their
      content. Raises UserError if they cannot be read.
    """

    name: str
    heading: str
    pattern: str
    load: Callable[[str | None, str], Measure]
    better: Literal["higher", "lower"] | None = None
    explanation: str = ""
    needs_baseline: bool = False
    yes_no: bool = False
    brief: bool = False
    headline: bool = False
    change_heading: str | None = None
    weights: str | None = None
    weights_are: str = "the file of its weights"
    may_be_hub_id: bool = False
    spread: tuple[float, float] | None = None
    version: int = 1
    fingerprint: Callable[[str], str] = file_sha256

    @property
    def sign(self) -> float:
        """-1 if higher is better, else 1: a larger ``sign * value`` is worse."""
        return 1.0 if self.better == "lower" else -1.0
