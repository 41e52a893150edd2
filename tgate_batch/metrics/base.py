"""The definition of a per-image metric and of its column in the report.

An entry says everything that others need to know of a metric: ``METRIC = PictureMetric(...)`` in a
module of its own, and the module's name in ``tgate_batch.score.registry.MODULES``. Entries are read
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
ArmFigures = Mapping[str, Any]  # an arm's entry of report.json

UNKNOWN = "–"  # shown where there is no value


class Measure(Protocol):
    """Computes one number per image from images and prompts."""

    def __call__(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        baselines: Sequence[Image.Image] | None = None,
    ) -> np.ndarray:
        """float64 [n]: a number for each image, NaN where the metric has nothing to say.

        ``baselines`` are the baseline's images of the same prompts and seeds, for a metric that
        needs them.
        """
        ...


@dataclass(frozen=True)
class Column:
    """One figure of an arm: its word, where it lies in report.json, and how a table shows it.

    - ``name`` is its word in ``thresholds``, ``heading`` its word in the tables.
    - ``pattern`` is for ``str.format``, or a function of the value where no pattern can say it.
    - ``better`` says which way is better, None where neither is.
    - ``tables`` are those that show it: "speed", "images", "sets", and "brief" (the terminal's).
    - ``path`` leads to the value in an arm's entry of report.json; empty: the entry's key ``name``.
    - ``derive`` computes the value from the entries of an arm and of its baseline (or None), where
      no path leads to it.
    - ``bounded`` says whether thresholds may bound it: it is one number.
    - ``beside_baseline`` marks a comparison with the baseline. Its thresholds do not judge the
      baseline itself.
    - ``interval`` leads to its ``{value, low, high}``, on which tests judge; empty: it has none.
    - ``withheld`` are keys of the arm's ``withheld``: why there is no figure or no interval.
    - ``of`` is the key of the figure that it is of: an arm without that one has none.
    - ``change`` marks a difference to the baseline, in the figure's own units.
    - ``change_heading`` and ``change_pattern`` are of the mean difference to the baseline's same
      images, which has a column of its own. Without a heading tables do not show it.
    - ``explanation`` tells in a sentence or two what it is, to one who has read no paper.
    """

    name: str
    heading: str
    pattern: str | Callable[[Any], str]
    better: Literal["higher", "lower"] | None = None
    tables: tuple[Table, ...] = ()
    path: tuple[str, ...] = ()
    derive: Callable[[ArmFigures, ArmFigures | None], Any] | None = None
    bounded: bool = True
    beside_baseline: bool = False
    interval: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    of: str | None = None
    change: bool = False
    change_heading: str | None = None
    change_pattern: str = "{:+.2f}"
    explanation: str = ""

    def value(self, arm: ArmFigures, baseline: ArmFigures | None = None) -> Any:
        """The figure in an arm's entry of report.json; None where it was not measured."""
        if not self._held(arm):
            return None
        if self.derive is not None:
            return self.derive(arm, baseline)
        return _follow(arm, self.path or (self.name,))

    def bounds(self, arm: ArmFigures) -> Mapping[str, float] | None:
        """Its interval ``{value, low, high}``; None where it has none."""
        found = _follow(arm, self.interval) if self.interval and self._held(arm) else None
        return None if found is None or found.get("low") is None else found

    def reason(self, arm: ArmFigures) -> str | None:
        """Why the figure or its interval is withheld, in words."""
        reasons = (arm.get("withheld") or {}) if self._held(arm) else {}
        return next((reasons[key] for key in self.withheld if key in reasons), None)

    def show(self, arm: ArmFigures, brief: bool = False) -> str:
        """The figure as a table's cell, with its interval; a brief cell has that of a change."""
        value, found = self.value(arm), self.bounds(arm)
        if value is None:
            return UNKNOWN
        if found is None or (brief and not self.change):
            return self.word(value)
        return f"{self.word(value)} [{self.word(found['low'])}, {self.word(found['high'])}]"

    def _held(self, arm: ArmFigures) -> bool:
        return self.of is None or arm.get(self.of) is not None

    def word(self, value: Any) -> str:
        """A value of the figure as it is shown."""
        return self.pattern(value) if callable(self.pattern) else self.pattern.format(value)


def _follow(arm: ArmFigures, path: Sequence[str]) -> Any:
    found: Any = arm
    for key in path:
        found = None if found is None else found.get(key)
    return found


@dataclass(frozen=True)
class PictureMetric:
    """The entry of a metric that gives one number an image.

    - ``name`` is its key in report.json, in the measured files, and the name of its ``column``.
    - ``load`` takes the weights' place (or None) and the device and returns the measure. It raises
      UserError where the weights are missing or are something else.
    - ``needs_baseline`` says whether it compares with the baseline's images. The report then
      keeps its mean under ``paired``.
    - ``yes_no`` says that the number is 1 or 0. Its change then tells how many images gained and
      how many lost.
    - ``weights`` is the key under ``score.weights`` that switches it on; None: it needs none and is
      always measured.
    - ``weights_are`` says in words what to give there; ``may_be_hub_id`` that it may be a hub's id,
      so that no file has to exist before the run.
    - ``spread`` is the range in which the distribution of its changes is shown: of its values where
      it compares with the baseline, else of their differences. None: none is shown.
    - ``version`` is raised by hand when equal images get other figures: what was measured before
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
    spread: tuple[float, float] | None = None
    version: int = 1
    fingerprint: Callable[[str], str] = file_sha256

    def __post_init__(self) -> None:
        if self.column.name != self.name:
            raise ValueError(f"metric {self.name!r} has a column named {self.column.name!r}")
