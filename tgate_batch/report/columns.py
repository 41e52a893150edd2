"""All columns of the report, in the order of the tables: heading, value and formatting of a figure.

Tables and thresholds are derived from this list alone. The columns of per-image metrics are made
from ``tgate_batch.score.registry.METRICS``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.score import registry

Table = Literal["speed", "images", "sets", "brief"]  # "brief": the terminal's
ArmFigures = Mapping[str, Any]  # an arm's entry of report.json

UNKNOWN = "–"  # shown if there is no value
MACS = {  # the two conventions of counting
    "macs_per_image_with_attention": "MACs per image, attention included",
    "macs_per_image": "MACs per image, published convention",
}


@dataclass(frozen=True)
class Column:
    """One figure of an arm: its name, its position in report.json, and its formatting.

    - ``name`` is its name in ``thresholds``, ``heading`` its name in the tables.
    - ``pattern`` is for ``str.format``, or a function of the value.
    - ``better`` is the better direction; None if neither is.
    - ``tables`` are those that show it.
    - ``path`` are the keys of the value in an arm's entry of report.json; empty: the key ``name``.
    - ``derive`` computes the value from the entries of an arm and of its baseline (or None), for a
      figure without a path.
    - ``bounded``: thresholds may bound it, because it is one number.
    - ``beside_baseline``: it compares with the baseline, and is not judged for the baseline itself.
    - ``interval`` are the keys of its ``{value, low, high}``, on which tests judge; empty: none.
    - ``withheld`` are the keys of the arm's ``withheld`` with the reason if the figure or its
      interval is left out.
    - ``of`` is the key of the figure that it belongs to: an arm without that one has none.
    - ``change``: it is a difference from the baseline, in the figure's units.
    - ``headline``: it is a change that the verdict may report.
    - ``explanation`` describes it in a sentence or two, for readers who know no paper.
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
    headline: bool = False
    explanation: str = ""

    def value(self, arm: ArmFigures, baseline: ArmFigures | None = None) -> Any:
        """Returns the figure of an arm; None if it was not measured."""
        if not self._applies(arm):
            return None
        if self.derive is not None:
            return self.derive(arm, baseline)
        return _follow(arm, self.path or (self.name,))

    def bounds(self, arm: ArmFigures) -> Mapping[str, float] | None:
        """Returns its interval ``{value, low, high}``; None if it has none."""
        bounds = _follow(arm, self.interval) if self.interval and self._applies(arm) else None
        return None if bounds is None or bounds.get("low") is None else bounds

    def reason(self, arm: ArmFigures) -> str | None:
        """Returns why the figure or its interval is withheld; None if it is not."""
        reasons = (arm.get("withheld") or {}) if self._applies(arm) else {}
        return next((reasons[key] for key in self.withheld if key in reasons), None)

    def show(self, arm: ArmFigures, brief: bool = False) -> str:
        """Returns the figure as a table cell, with its interval; if brief, only of a change."""
        value, bounds = self.value(arm), self.bounds(arm)
        if value is None:
            return UNKNOWN
        if bounds is None or (brief and not self.change):
            return self.format(value)
        return f"{self.format(value)} [{self.format(bounds['low'])}, {self.format(bounds['high'])}]"

    def format(self, value: Any) -> str:
        """Returns a value of the figure as text."""
        return self.pattern(value) if callable(self.pattern) else self.pattern.format(value)

    def _applies(self, arm: ArmFigures) -> bool:
        return self.of is None or arm.get(self.of) is not None


def _follow(arm: ArmFigures, path: Sequence[str]) -> Any:
    value: Any = arm
    for key in path:
        value = None if value is None else value.get(key)
    return value


def columns(arms: Sequence[ArmFigures] = ()) -> tuple[Column, ...]:
    """Returns the report's columns; ``arms``, entries of report.json, decide a distance's name."""
    metrics = (column for metric in registry.METRICS for column in _of_metric(metric))
    return (*_NAMES, *_SPEED, *_sets(arms), *metrics, *_SHARES)


def _of_metric(metric: ImageMetric) -> Iterator[Column]:
    """Yields the column of a metric, and that of its change."""
    tables: tuple[Table, ...] = ("images", "brief") if metric.brief else ("images",)
    column = partial(Column, better=metric.better)
    if not metric.yes_no:
        column = partial(column, interval=("intervals", metric.name), withheld=("intervals",))
    if metric.needs_baseline:
        column = partial(column, path=("paired", metric.name), beside_baseline=True)
    about = metric.explanation
    yield column(metric.name, metric.heading, metric.pattern, tables=tables, explanation=about)
    if metric.needs_baseline:
        return
    yield (_GainedAndLost if metric.yes_no else Column)(
        f"{metric.name}_change",
        metric.change_heading or f"{metric.heading} change",
        "{:+.2f}",
        better=metric.better,
        tables=tables if metric.change_heading is not None else (),
        path=("change", metric.name, "value"),
        beside_baseline=True,
        interval=("change", metric.name),
        withheld=("change",),
        of=metric.name,
        change=True,
        headline=metric.headline,
        explanation=(
            f"The arm's {metric.heading} minus the baseline's, over the prompts of both arms."
        ),
    )


@dataclass(frozen=True)
class _GainedAndLost(Column):
    """The change of a yes/no figure, in points, with the number of images that changed."""

    def show(self, arm: ArmFigures, brief: bool = False) -> str:
        change = (arm.get("change") or {}).get(self.interval[1])
        if change is None:
            return super().show(arm, brief)
        shown = f"{100 * change['value']:+.1f} points"
        if change.get("low") is not None:
            shown += f" [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
        if not brief and "gained" in change:
            shown += f": {change['gained']:,} gained, {change['lost']:,} lost"
        return shown


def _macs(value: float) -> str:
    return f"{value / 1e12:.2f} T" if value >= 1e11 else f"{value / 1e9:.2f} G"


def _percent(key: str, arm: ArmFigures, baseline: ArmFigures | None) -> float | None:
    """A number of rows as percent of all rows of the arm."""
    rows = arm["images"] + arm["errors"]
    return 100 * arm[key] / rows if rows else None


_lower = partial(Column, better="lower")
_higher = partial(Column, better="higher")
_name = partial(Column, pattern="{}", tables=("speed", "images", "sets", "brief"), bounded=False)
_SHOWN: tuple[Table, ...] = ("speed", "brief")
_NAMES = (
    _name("model", "model", explanation="The model that rendered the images."),
    _name(
        "arm",
        "arm",
        explanation=(
            "One way to render: the baseline, or a faster variant. All arms render the same "
            "prompts with the same seeds."
        ),
    ),
)
_SPEED = (
    Column("images", "images", "{}", tables=_SHOWN, explanation="Images that were rendered."),
    _lower(
        "errors",
        "errors",
        "{}",
        tables=_SHOWN,
        explanation="Images that could not be rendered; each row has the reason.",
    ),
    _higher(
        "images_per_second_per_worker",
        "images/s per worker",
        "{:.2f}",
        tables=_SHOWN,
        interval=("images_per_second_interval",),
        withheld=("images_per_second_interval",),
        explanation=(
            "Images per second of one worker: denoising and decoding, without loading the model "
            "and without each worker's first batch."
        ),
    ),
    _higher(
        "speedup",
        "speed-up",
        "{:.2f}x",
        tables=_SHOWN,
        beside_baseline=True,
        interval=("speedup_interval",),
        withheld=("speedup_interval",),
        explanation="The arm's images per second over the baseline's: 2.00x is twice as fast.",
    ),
    _lower(
        "macs_per_image_with_attention",
        MACS["macs_per_image_with_attention"],
        _macs,
        tables=("speed",),
        explanation=(
            "Multiply-accumulate operations of the denoiser for one image, all of them counted."
        ),
    ),
    _lower(
        "macs_per_image",
        MACS["macs_per_image"],
        _macs,
        tables=("speed",),
        explanation=(
            "The same, counted as papers do: linear layers and convolutions, without the products "
            "inside attention."
        ),
    ),
    _higher(
        "macs_saved",
        "MACs saved",
        "{:.1%}",
        tables=_SHOWN,
        beside_baseline=True,
        explanation="The share of the baseline's MACs that the arm saves.",
    ),
    _lower(
        "usd_per_1000_images_billed",
        "$ per 1,000 images, billed",
        "{:.4f}",
        tables=_SHOWN,
        explanation=(
            "The price of all devices of the run, including loading and waiting, divided among the "
            "arms by their device time."
        ),
    ),
    _lower(
        "usd_per_1000_images",
        "$ per 1,000 images, marginal",
        "{:.4f}",
        tables=_SHOWN,
        explanation=(
            "The price of 1,000 more images: denoising and decoding alone, at the config's price."
        ),
    ),
    _lower(
        "wh_per_1000_images",
        "Wh per 1,000 images",
        "{:.2f}",
        tables=("speed",),
        explanation="Energy that the GPUs used, in watt-hours.",
    ),
)
_SHARES = (  # of the rows; only for thresholds
    _lower("errors_percent", "errors (%)", "{:.2f}", derive=partial(_percent, "errors")),
    _lower("broken_percent", "broken images (%)", "{:.2f}", derive=partial(_percent, "broken")),
)


def _sets(arms: Sequence[ArmFigures]) -> Iterator[Column]:
    """Figures of all images against the reference set; an arm has ``fid`` or ``fd``, not both."""
    lower = partial(_lower, tables=("sets",))
    change = partial(lower, beside_baseline=True, change=True, headline=True)
    for key, default in (("fid", "FID"), ("fd", "FD")):
        labels = {arm.get("distance_label") or default for arm in arms if arm.get(key) is not None}
        names = {_split(label)[0] for label in labels}
        name = names.pop() if len(names) == 1 else default
        one = len(labels) == 1  # else each cell has its number of images
        yield _Labelled(
            key,
            labels.pop() if one else f"{name}-n" if labels else default,
            "{:.2f}",
            better="lower",
            tables=("sets", "brief"),
            each=not one,
            explanation=(
                "The Frechet distance of all images from the reference set, in the features of a "
                "network. Lower is closer. It is larger for fewer images, so compare only arms "
                "with equal numbers of images."
            ),
        )
        yield lower(
            f"{key}_corrected",
            f"{name}, bias-corrected",
            "{:.2f}",
            path=("distance_corrected", "value"),
            interval=("distance_corrected",),
            withheld=("distance_corrected",),
            of=key,
            explanation="The same distance without the part that is due to the number of images.",
        )
        yield change(
            f"{key}_change",
            f"{name} change",
            "{:+.2f}",
            path=("distance_change", "value"),
            interval=("distance_change",),
            withheld=("distance_change",),
            of=key,
            explanation=(
                "The arm's distance minus the baseline's; below 0 is closer to the reference."
            ),
        )
    official = any(arm.get("fid") is not None for arm in arms)
    kernel = "KID" if official else "kernel distance"
    yield lower(
        "kid",
        kernel,
        "{:.4f}",
        path=("kid", "value"),
        interval=("kid",),
        withheld=("kid",),
        explanation=(
            "The distance of all images from the reference set, as an average over pairs of "
            "images. Lower is closer. It has no bias for few images."
        ),
    )
    yield change(
        "kid_change",
        f"{kernel} change",
        "{:+.4f}",
        path=("kid_change", "value"),
        interval=("kid_change",),
        withheld=("kid_change", "kid"),
        explanation=f"The arm's {kernel} minus the baseline's; below 0 is closer to the reference.",
    )
    for share, explanation in (
        ("precision", "The share of images that resemble some of the reference set: fidelity."),
        ("recall", "The share of the reference set that resembles some of the images: variety."),
    ):
        yield _higher(
            share, share, "{:.2f}", tables=("sets",), withheld=(share,), explanation=explanation
        )


def _split(label: str) -> tuple[str, str]:
    """Splits FID-5000 into FID and 5000."""
    name, _, count = label.rpartition("-")
    return (name, count) if name and count.isdecimal() else (label, "")


@dataclass(frozen=True)
class _Labelled(Column):
    """A distance whose number of images is in the heading, or in ``each`` cell."""

    each: bool = False

    def show(self, arm: ArmFigures, brief: bool = False) -> str:
        shown, count = super().show(arm, brief), _split(arm.get("distance_label") or "")[1]
        return f"{shown} (n = {count})" if self.each and count and shown != UNKNOWN else shown
