"""Plots of quality: against speed, and histograms of the changes of single images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.report.columns import ArmFigures, Column, columns
from tgate_batch.report.plots import svg
from tgate_batch.report.plots.base import Plot, error_bar, named_arms
from tgate_batch.report.verdict import changes
from tgate_batch.score import registry

_FRONTIERS = 2  # at most


def frontiers(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """Speed against each change of quality that the verdict reports."""
    chosen: dict[str, Column] = {}
    for arm in arms:
        chosen |= {column.name: column for column in changes(arm, arms)}
    for column in list(chosen.values())[:_FRONTIERS]:
        points = [
            (index, name, arm)
            for index, name, arm in named_arms(arms)
            if arm["speedup"] is not None and (arm["is_baseline"] or column.value(arm) is not None)
        ]
        if any(not arm["is_baseline"] for _, _, arm in points):
            yield _frontier(column, points)


def _frontier(column: Column, points: list[tuple[int, str, ArmFigures]]) -> Plot:
    scale, unit = (100.0, " (points)") if _is_yes_no(column) else (1.0, "")
    speedup = next(each for each in columns() if each.name == "speedup")
    rows = [["arm", "speed-up", column.heading]]
    with svg.svg_figure(f"frontier-{column.name}") as plot:
        axes = plot.axes
        axes.axhline(0, color=svg.MUTED, linewidth=0.8)
        for index, name, arm in points:
            value = 0.0 if arm["is_baseline"] else scale * column.value(arm)
            bounds = None if arm["is_baseline"] else column.bounds(arm)
            if bounds is not None:
                bounds = {key: scale * bounds[key] for key in ("low", "high")}
            colour = svg.colour(index)
            point, _, _ = axes.errorbar(
                arm["speedup"],
                value,
                xerr=error_bar(arm["speedup"], arm.get("speedup_interval")),
                yerr=error_bar(value, bounds),
                color=colour,
                marker="D" if arm["is_baseline"] else "o",
                markersize=7,
                capsize=3,
                linestyle="none",
            )
            point.set_gid(f"point-{index}")
            axes.annotate(
                name,
                (arm["speedup"], value),
                xytext=(-8, 7) if arm["is_baseline"] else (8, 7),
                ha="right" if arm["is_baseline"] else "left",
                textcoords="offset points",
                color=colour,
                fontweight="bold",
                gid=f"label-{index}",
            )
            change = "0 (by definition)" if arm["is_baseline"] else column.show(arm)
            rows.append([name, speedup.show(arm), change])
        if column.better == "lower":
            axes.invert_yaxis()
        axes.margins(x=0.18, y=0.15)
        axes.set_xlabel("speed-up: times as many images a second")
        axes.set_ylabel(f"{column.heading}{unit}")
    return Plot(
        plot.name,
        f"Speed against quality: {column.heading}",
        "Further right is faster, further up is better; the baseline is at 1 and 0. Bars are 95% "
        "intervals: if one crosses the line at 0, the change may be chance.",
        plot.svg,
        rows,
    )


def _is_yes_no(column: Column) -> bool:
    return any(metric.yes_no and metric.name == column.of for metric in registry.METRICS)


def gained_and_lost(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """The numbers of images that changed, one plot per yes/no metric."""
    for metric in registry.METRICS:
        if not metric.yes_no:
            continue
        known = [
            (index, name, arm["change"][metric.name])
            for index, name, arm in named_arms(arms)
            if ((arm.get("change") or {}).get(metric.name) or {}).get("count")
        ]
        if known:
            yield _images_changed(metric, known)


def _images_changed(metric: ImageMetric, known: list[tuple[int, str, Any]]) -> Plot:
    heading = metric.heading
    rows = [["arm", "lost", "gained", "the same", "change (points)"]]
    with svg.svg_figure(f"changed-{metric.name}", height=1.2 + 0.45 * len(known)) as plot:
        axes = plot.axes
        axes.axvline(0, color=svg.MUTED, linewidth=0.8)
        for line, (index, name, change) in enumerate(known):
            lost, gained, count = change["lost"], change["gained"], change["count"]
            for share, shown, side in ((-lost, lost, -1), (gained, gained, 1)):
                axes.barh(
                    line,
                    100 * share / count,
                    height=0.6,
                    color=svg.colour(index),
                    alpha=0.55 if side < 0 else 1.0,
                    gid=f"changed-{line}-{'lost' if side < 0 else 'gained'}",
                )
                axes.annotate(
                    f"{shown:,} {'lost' if side < 0 else 'gained'}",
                    (100 * share / count, line),
                    xytext=(5 * side, 0),
                    textcoords="offset points",
                    va="center",
                    ha="left" if side > 0 else "right",
                )
            points = f"{100 * change['value']:+.1f}"
            if change["low"] is not None:
                points += f" [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
            same = count - lost - gained
            rows.append([name, f"{lost:,}", f"{gained:,}", f"{same:,}", points])
        axes.set_yticks(range(len(known)), [name for _, name, _ in known])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.35)
        axes.set_xlabel("% of the images: lost to the left, gained to the right")
    return Plot(
        plot.name,
        f"Images that changed: {heading}",
        f"Images of the same prompt and seed. Lost: the baseline's image had it ({heading}), and "
        "the arm's does not. Equal lengths on both sides are chance, not damage.",
        plot.svg,
        rows,
    )


def spreads(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """Histograms of the changes of single images, one plot per metric."""
    for metric in registry.METRICS:
        known = [
            (index, name, arm, arm["spread"][metric.name])
            for index, name, arm in named_arms(arms)
            if sum(((arm.get("spread") or {}).get(metric.name) or {}).get("counts") or ())
        ]
        if known:
            yield _spread(metric, known)


def _spread(metric: ImageMetric, known: list[tuple[int, str, ArmFigures, Any]]) -> Plot:
    heading, paired = metric.heading, metric.needs_baseline
    what = f"{heading} against the baseline's image" if paired else f"change of {heading}"
    rows = [["arm", what, "images"]]
    with svg.svg_figure(f"spread-{metric.name}") as plot:
        axes = plot.axes
        filled = np.any([np.array(each["counts"]) > 0 for *_, each in known], axis=0)
        first, last = int(filled.argmax()), len(filled) - int(filled[::-1].argmax())
        for index, name, arm, histogram in known:
            counts = np.array(histogram["counts"], float)
            edges = np.linspace(histogram["low"], histogram["high"], len(counts) + 1)
            colour = svg.colour(index)
            shares = 100 * counts / counts.sum()
            axes.stairs(
                shares[first:last],
                edges[first : last + 1],
                color=colour,
                label=name,
                linestyle=svg.dashes(index),
                linewidth=1.8,
                gid=f"spread-{index}",
            )
            key = "intervals" if paired else "change"
            bounds = (arm.get(key) or {}).get(metric.name)
            if bounds is not None and bounds.get("low") is not None:
                axes.axvspan(bounds["low"], bounds["high"], color=colour, alpha=0.18, linewidth=0)
            rows += [
                [name, f"{edges[n]:g} to {edges[n + 1]:g}", f"{histogram['counts'][n]:,}"]
                for n in range(first, last)
                if histogram["counts"][n]
            ]
        axes.set_xlabel(what)
        axes.set_ylabel("% of the images")
        axes.set_ylim(bottom=0)
        plot.figure.legend(loc="outside upper center", ncols=min(4, len(known)))
    better = {"higher": "Further right is better", "lower": "Further left is better", None: ""}
    closer = ": closer to the baseline's image" if paired else ""
    return Plot(
        plot.name,
        f"Distribution of changes: {heading}",
        f"The histogram of the changes. {better[metric.better]}{closer}. Bands are 95% intervals "
        "of the mean; the first and the last bin include all values beyond.",
        plot.svg,
        rows,
    )
