"""Every figure of the report, in the order of the tables: its word, its value and how it is shown.

Tables and thresholds are derived from this list alone. A metric of single images brings its own
column (``tgate_batch.metrics.base``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tgate_batch.metrics.base import UNKNOWN, ArmFigures, Column, PictureMetric, Table
from tgate_batch.score import registry

MACS = {  # the two conventions of counting
    "macs_per_image_with_attention": "MACs per image, attention included",
    "macs_per_image": "MACs per image, published convention",
}


def columns(arms: Sequence[ArmFigures] = ()) -> tuple[Column, ...]:
    """The report's columns; ``arms``, entries of report.json, say how a distance is called."""
    return (
        Column(
            "model",
            "model",
            "{}",
            tables=_EVERY,
            bounded=False,
            explanation="The model that rendered the images.",
        ),
        Column(
            "arm",
            "arm",
            "{}",
            tables=_EVERY,
            bounded=False,
            explanation=(
                "One way to render: the baseline, or a faster variant. All arms render the "
                "same prompts with the same seeds."
            ),
        ),
        *_SPEED,
        *_sets(arms),
        *(column for metric in registry.METRICS for column in _of_metric(metric)),
        *_SHARES,
    )


def _of_metric(metric: PictureMetric) -> Iterator[Column]:
    """The column of a metric, then that of its change, each with the place of its value."""
    own = metric.column
    if not metric.yes_no:
        own = replace(own, interval=("intervals", metric.name), withheld=("intervals",))
    if metric.needs_baseline:
        yield replace(own, path=("paired", metric.name), beside_baseline=True)
        return
    yield own
    heading = own.change_heading
    kind = _GainedAndLost if metric.yes_no else Column
    yield kind(
        f"{metric.name}_change",
        heading or f"{own.heading} change",
        own.change_pattern,
        better=own.better,
        tables=own.tables if heading is not None else (),
        path=("change", metric.name, "value"),
        beside_baseline=True,
        interval=("change", metric.name),
        withheld=("change",),
        of=metric.name,
        change=True,
        explanation=(
            f"The arm's {own.heading} less the baseline's, over the prompts that both delivered."
        ),
    )


@dataclass(frozen=True)
class _GainedAndLost(Column):
    """The change of a yes/no figure, in points, with the images that changed."""

    def show(self, arm: ArmFigures, brief: bool = False) -> str:
        found = (arm.get("change") or {}).get(self.interval[1])
        if found is None:
            return super().show(arm, brief)
        shown = f"{100 * found['value']:+.1f} points"
        if found.get("low") is not None:
            shown += f" [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
        if not brief and "gained" in found:
            shown += f": {found['gained']:,} gained, {found['lost']:,} lost"
        return shown


def _macs(value: float) -> str:
    return f"{value / 1e12:.2f} T" if value >= 1e11 else f"{value / 1e9:.2f} G"


def _share_of_rows(key: str) -> Callable[[ArmFigures, ArmFigures | None], float | None]:
    """A count of rows as percent of all rows of the arm."""

    def percent(arm: ArmFigures, baseline: ArmFigures | None) -> float | None:
        rows = arm["images"] + arm["errors"]
        return 100 * arm[key] / rows if rows else None

    return percent


_MACS_EXPLAINED = {
    "macs_per_image_with_attention": (
        "Multiplications (each with its addition) that the denoiser does for one image, all of "
        "them counted."
    ),
    "macs_per_image": (
        "The same, counted as papers do: linear layers and convolutions, without the products "
        "inside attention."
    ),
}
_SHARES_EXPLAINED = {
    "precision": "The share of images that look like some of the reference set: fidelity.",
    "recall": "The share of the reference set that looks like some of the images: variety.",
}
_EVERY: tuple[Table, ...] = ("speed", "pictures", "sets", "brief")
_SPEED = (
    Column(
        "images",
        "images",
        "{}",
        tables=("speed", "brief"),
        explanation="Images that were rendered.",
    ),
    Column(
        "errors",
        "errors",
        "{}",
        better="lower",
        tables=("speed", "brief"),
        explanation="Images that could not be rendered; each row has the reason.",
    ),
    Column(
        "images_per_second_per_worker",
        "images/s per worker",
        "{:.2f}",
        better="higher",
        tables=("speed", "brief"),
        interval=("images_per_second_interval",),
        withheld=("images_per_second_interval",),
        explanation=(
            "Images a second that one worker renders: denoising and decoding, without loading the "
            "model and without each worker's first batch."
        ),
    ),
    Column(
        "speedup",
        "speed-up",
        "{:.2f}x",
        better="higher",
        tables=("speed", "brief"),
        beside_baseline=True,
        interval=("speedup_interval",),
        withheld=("speedup_interval",),
        explanation="The arm's images a second over the baseline's: 2.00x is twice as fast.",
    ),
    *(
        Column(
            key,
            heading,
            _macs,
            better="lower",
            tables=("speed",),
            explanation=_MACS_EXPLAINED[key],
        )
        for key, heading in MACS.items()
    ),
    Column(
        "macs_saved",
        "MACs saved",
        "{:.1%}",
        better="higher",
        tables=("speed", "brief"),
        beside_baseline=True,
        explanation="The share of the baseline's MACs that the arm saves.",
    ),
    Column(
        "usd_per_1000_images_billed",
        "$ per 1,000 images, billed",
        "{:.4f}",
        better="lower",
        tables=("speed", "brief"),
        explanation=(
            "All devices of the run, loading and waiting too, at the config's price; shared among "
            "the arms by their time on the device."
        ),
    ),
    Column(
        "usd_per_1000_images",
        "$ per 1,000 images, marginal",
        "{:.4f}",
        better="lower",
        tables=("speed", "brief"),
        explanation=(
            "What 1,000 more images would cost: denoising and decoding alone, at the config's "
            "price."
        ),
    ),
    Column(
        "wh_per_1000_images",
        "Wh per 1,000 images",
        "{:.2f}",
        better="lower",
        tables=("speed",),
        explanation="Energy that the GPUs used, in watt-hours.",
    ),
)
_SHARES = (  # of the rows; for thresholds
    Column(
        "errors_percent", "errors (%)", "{:.2f}", better="lower", derive=_share_of_rows("errors")
    ),
    Column(
        "broken_percent",
        "broken images (%)",
        "{:.2f}",
        better="lower",
        derive=_share_of_rows("broken"),
    ),
)


def _sets(arms: Sequence[ArmFigures]) -> Iterator[Column]:
    """Figures of all images against the reference set; an arm has ``fid`` or ``fd``, not both."""
    for key, otherwise in (("fid", "FID"), ("fd", "FD")):
        yield from _distance(arms, key, otherwise)
    official = any(arm.get("fid") is not None for arm in arms)
    kernel = "KID" if official else "kernel distance"
    yield Column(
        "kid",
        kernel,
        "{:.4f}",
        better="lower",
        tables=("sets",),
        path=("kid", "value"),
        interval=("kid",),
        withheld=("kid",),
        explanation=(
            "How far all images together are from the reference set, as an average over pairs of "
            "images. Lower is closer. It is fair to few images too."
        ),
    )
    yield Column(
        "kid_change",
        f"{kernel} change",
        "{:+.4f}",
        better="lower",
        tables=("sets",),
        path=("kid_change", "value"),
        beside_baseline=True,
        interval=("kid_change",),
        withheld=("kid_change", "kid"),
        change=True,
        explanation=f"The arm's {kernel} less the baseline's; below 0 is closer to the reference.",
    )
    for share in ("precision", "recall"):
        yield Column(
            share,
            share,
            "{:.2f}",
            better="higher",
            tables=("sets",),
            withheld=(share,),
            explanation=_SHARES_EXPLAINED[share],
        )


def _distance(arms: Sequence[ArmFigures], key: str, otherwise: str) -> Iterator[Column]:
    """A distance as it is published, bias-corrected, and its change, under the arms' own name.

    Where arms have different numbers of images, each says its own in its cell.
    """
    labels = {arm.get("distance_label") or otherwise for arm in arms if arm.get(key) is not None}
    names = {_split(label)[0] for label in labels}
    name = names.pop() if len(names) == 1 else otherwise
    one = len(labels) == 1

    yield _Labelled(
        key,
        labels.pop() if one else f"{name}-n" if labels else otherwise,
        "{:.2f}",
        better="lower",
        tables=("sets", "brief"),
        each=not one,
        explanation=(
            "How far all images together are from the reference set, in what a network sees in "
            "them (Frechet distance). Lower is closer. It is larger the fewer the images, so "
            "compare arms with equal numbers only."
        ),
    )
    yield Column(
        f"{key}_corrected",
        f"{name}, bias-corrected",
        "{:.2f}",
        better="lower",
        tables=("sets",),
        path=("distance_corrected", "value"),
        interval=("distance_corrected",),
        withheld=("distance_corrected",),
        of=key,
        explanation="The same distance without what comes of the number of images alone.",
    )
    yield Column(
        f"{key}_change",
        f"{name} change",
        "{:+.2f}",
        better="lower",
        tables=("sets",),
        path=("distance_change", "value"),
        beside_baseline=True,
        interval=("distance_change",),
        withheld=("distance_change",),
        change=True,
        of=key,
        explanation="The arm's distance less the baseline's; below 0 is closer to the reference.",
    )


def _split(label: str) -> tuple[str, str]:
    """FID-5000 -> FID and 5000."""
    name, _, count = label.rpartition("-")
    return (name, count) if name and count.isdecimal() else (label, "")


@dataclass(frozen=True)
class _Labelled(Column):
    """A distance whose label says of how many images it is: in ``each`` cell or in the head."""

    each: bool = False

    def show(self, arm: ArmFigures, brief: bool = False) -> str:
        shown, count = super().show(arm, brief), _split(arm.get("distance_label") or "")[1]
        return f"{shown} (n = {count})" if self.each and count and shown != UNKNOWN else shown
