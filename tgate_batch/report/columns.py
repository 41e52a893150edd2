"""Every figure of the report, in the order of the tables: its word, its value and how it is shown.

Tables and thresholds are derived from this list alone. A metric of single pictures brings its own
column (``tgate_batch.metrics.entry``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tgate_batch.metrics.entry import Arm, Column, PictureMetric, Table
from tgate_batch.score import metrics

Interval = dict[str, float]  # value (an estimate), low, high


def columns(arms: Sequence[Arm] = ()) -> tuple[Column, ...]:
    """The report's columns; ``arms``, entries of report.json, say how a distance is called."""
    return (
        Column("model", "model", "{}", tables=_EVERY, bounded=False),
        Column("arm", "arm", "{}", tables=_EVERY, bounded=False),
        *_SPEED,
        *_sets(arms),
        *(column for metric in metrics.METRICS for column in _of_metric(metric)),
        *_SHARES,
    )


def _of_metric(metric: PictureMetric) -> Iterator[Column]:
    """The column of a metric, then that of its change, each with the place of its value."""
    if metric.needs_baseline:
        yield replace(metric.column, path=("paired", metric.name), beside_baseline=True)
        return
    yield metric.column
    if metric.column.change_heading is not None:
        yield Column(
            f"{metric.name}_change",
            metric.column.change_heading,
            _with_interval(metric.column.change_pattern),
            better=metric.column.better,
            tables=metric.column.tables,
            path=("change", metric.name),
            bounded=False,
            beside_baseline=True,
        )


def _label(arms: Sequence[Arm], key: str, otherwise: str) -> str:
    """The label of the first arm with that distance, such as FID-5000."""
    labels = (arm.get("distance_label") for arm in arms if arm.get(key) is not None)
    return next(filter(None, labels), otherwise)


def _interval(found: Interval) -> str:
    return f"[{found['low']:.2f}, {found['high']:.2f}]"


def _with_interval(pattern: str) -> Callable[[Interval], str]:
    def show(found: Interval) -> str:
        value, low, high = (pattern.format(found[key]) for key in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    return show


def _macs(value: float) -> str:
    return f"{value / 1e12:.2f} T" if value >= 1e11 else f"{value / 1e9:.2f} G"


def _share_of_rows(key: str) -> Callable[[Arm, Arm | None], float | None]:
    """A count of rows as percent of all rows of the arm."""

    def percent(arm: Arm, baseline: Arm | None) -> float | None:
        rows = arm["images"] + arm["errors"]
        return 100 * arm[key] / rows if rows else None

    return percent


def _change_percent(key: str) -> Callable[[Arm, Arm | None], float | None]:
    """The change of a figure against the baseline's, in percent of the baseline's."""

    def percent(arm: Arm, baseline: Arm | None) -> float | None:
        before = None if baseline is None else baseline.get(key)
        return 100 * (arm[key] / before - 1) if before and arm.get(key) is not None else None

    return percent


_EVERY: tuple[Table, ...] = ("speed", "pictures", "sets", "brief")
_SPEED = (
    Column("images", "images", "{}", tables=("speed", "brief")),
    Column("errors", "errors", "{}", better="lower", tables=("speed", "brief")),
    Column(
        "images_per_second_per_worker",
        "images/s per worker",
        "{:.2f}",
        better="higher",
        tables=("speed", "brief"),
    ),
    Column(
        "speedup",
        "speed-up",
        "{:.2f}x",
        better="higher",
        tables=("speed", "brief"),
        beside_baseline=True,
    ),
    Column(
        "macs_per_image_with_attention", "MACs per image", _macs, better="lower", tables=("speed",)
    ),
    Column(
        "macs_saved",
        "MACs saved",
        "{:.1%}",
        better="higher",
        tables=("speed", "brief"),
        beside_baseline=True,
    ),
    Column(
        "usd_per_1000_images_billed",
        "$ per 1,000 images, billed",
        "{:.4f}",
        better="lower",
        tables=("speed", "brief"),
    ),
    Column(
        "usd_per_1000_images",
        "$ per 1,000 images, marginal",
        "{:.4f}",
        better="lower",
        tables=("speed", "brief"),
    ),
    Column(
        "wh_per_1000_images", "Wh per 1,000 images", "{:.2f}", better="lower", tables=("speed",)
    ),
)
_SHARES = (  # of the rows; for thresholds
    Column(
        "errors_percent", "errors (%)", "{:.2f}", better="lower", derive=_share_of_rows("errors")
    ),
    Column(
        "broken_percent",
        "broken pictures (%)",
        "{:.2f}",
        better="lower",
        derive=_share_of_rows("broken"),
    ),
)


def _sets(arms: Sequence[Arm]) -> tuple[Column, ...]:
    """Figures of all pictures against the reference set; an arm has ``fid`` or ``fd``, not both."""
    official = any(arm.get("fid") is not None for arm in arms)
    kernel = "KID" if official else "kernel distance"
    both: tuple[Table, ...] = ("sets", "brief")
    return (
        Column("fid", _label(arms, "fid", "FID"), "{:.2f}", better="lower", tables=both),
        Column("fd", _label(arms, "fd", "FD"), "{:.2f}", better="lower", tables=both),
        Column("distance_interval", "95% CI", _interval, tables=("sets",), bounded=False),
        Column(
            "distance_change",
            "change [95% CI]",
            _with_interval("{:+.2f}"),
            better="lower",
            tables=("sets",),
            bounded=False,
            beside_baseline=True,
        ),
        Column(
            "extrapolation",
            "of infinitely many",
            "{:.2f}",
            better="lower",
            tables=("sets",),
            path=("extrapolation", "infinite"),
        ),
        Column(
            "kid_with_spread",
            kernel,
            "{0[mean]:.4f} ± {0[spread]:.4f}",
            better="lower",
            tables=("sets",),
            path=("kid",),
            bounded=False,
        ),
        Column("kid", kernel, "{:.4f}", better="lower", path=("kid", "mean")),
        Column("precision", "precision", "{:.2f}", better="higher", tables=("sets",)),
        Column("recall", "recall", "{:.2f}", better="higher", tables=("sets",)),
        *(
            Column(
                f"{key}_change_percent",
                f"change of {name} (%)",
                "{:+.2f}",
                better="lower",
                derive=_change_percent(key),
                beside_baseline=True,
            )
            for key, name in (("fid", "FID"), ("fd", "FD"))
        ),
    )
