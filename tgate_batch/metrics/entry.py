"""What a metric of single pictures is: one entry in its own file, and its column in the report.

An entry says everything that others need to know of a metric: ``METRIC = PictureMetric(...)`` in a
module of its own, and the module's name in ``tgate_batch.score.metrics.MODULES``. Entries are read
before anything is measured, by the check of a config and by the report, so their modules import
torch and the like only inside ``load``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from tgate_batch.metrics.weights import file_sha256

Table = Literal["speed", "pictures", "sets", "brief"]
Arm = Mapping[str, Any]  # an arm's entry of report.json

UNKNOWN = "–"  # shown where there is no value


class Measure(Protocol):
    """Images and prompts in, one number a picture out."""

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        """float64 [n]: a number for each image, NaN where the metric has nothing to say.

        ``baselines`` are the baseline's pictures of the same prompts and seeds, for a metric that
        needs them.
        """
        ...


@dataclass(frozen=True)
class Column:
    """One figure of an arm: its word, where it lies in report.json, and how a table shows it.

    - ``name`` is its word in ``thresholds``, ``heading`` its word in the tables.
    - ``pattern`` is for ``str.format``, or a function of the value where no pattern can say it.
    - ``better`` says which way is better, None where neither is.
    - ``tables`` are those that show it: "speed", "pictures", "sets", and "brief" (the terminal's).
    - ``path`` leads to the value in an arm's entry of report.json; empty: the entry's key ``name``.
    - ``derive`` computes the value from the entries of an arm and of its baseline (or None), where
      no path leads to it.
    - ``bounded`` says whether thresholds may bound it: it is one number.
    - ``beside_baseline`` marks a comparison with the baseline. Its thresholds do not judge the
      baseline itself.
    - ``change_heading`` and ``change_pattern`` show the mean difference to the baseline's same
      pictures in a column of its own; None: it is not shown.
    """

    name: str
    heading: str
    pattern: str | Callable[[Any], str]
    better: Literal["higher", "lower"] | None = None
    tables: tuple[Table, ...] = ()
    path: tuple[str, ...] = ()
    derive: Callable[[Arm, Arm | None], Any] | None = None
    bounded: bool = True
    beside_baseline: bool = False
    change_heading: str | None = None
    change_pattern: str = "{:+.2f}"

    def value(self, arm: Arm, baseline: Arm | None = None) -> Any:
        """The figure in an arm's entry of report.json; None where it was not measured."""
        if self.derive is not None:
            return self.derive(arm, baseline)
        found: Any = arm
        for key in self.path or (self.name,):
            found = None if found is None else found.get(key)
        return found

    def show(self, arm: Arm) -> str:
        """The figure as a table's cell."""
        value = self.value(arm)
        if value is None:
            return UNKNOWN
        return self.pattern(value) if callable(self.pattern) else self.pattern.format(value)


@dataclass(frozen=True)
class PictureMetric:
    """The entry of a metric that gives one number a picture.

    - ``name`` is its key in report.json, in the measured files, and the name of its ``column``.
    - ``load`` takes the weights' place (or None) and the device and returns the measure. It raises
      UserError where the weights are missing or are something else.
    - ``needs_baseline`` says whether it compares with the baseline's pictures. The report then
      keeps its mean under ``paired``.
    - ``yes_no`` says whether its numbers are 0 and 1: changes are then counted.
    - ``weights`` is the key under ``score.weights`` that switches it on; None: it needs none and is
      always measured.
    - ``weights_are`` says in words what to give there; ``may_be_hub_id`` that it may be a hub's id,
      so that no file has to exist before the run.
    - ``version`` is raised by hand when equal pictures get other figures: what was measured before
      is then measured again.
    - ``fingerprint`` takes the weights' place and returns a hexadecimal sha256 of what is there. It
      raises UserError where it cannot be read.
    """

    name: str
    column: Column
    load: Callable[[str | None, str], Measure]
    needs_baseline: bool = False
    yes_no: bool = False
    weights: str | None = None
    weights_are: str = "the file of its weights"
    may_be_hub_id: bool = False
    version: int = 1
    fingerprint: Callable[[str], str] = file_sha256

    def __post_init__(self) -> None:
        if self.column.name != self.name:
            raise ValueError(f"metric {self.name!r} has a column named {self.column.name!r}")
