"""Plots of quality: beside speed, and how the changes of single images spread."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tgate_batch.metrics.base import ArmFigures, Column, PictureMetric
from tgate_batch.report.columns import columns
from tgate_batch.report.plots import svg
from tgate_batch.report.plots.base import Plot, error_bar, named_arms
from tgate_batch.report.verdict import changes
from tgate_batch.score import registry

_FRONTIERS = 2  # at most


def frontiers(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """Speed against each change of quality that the verdict speaks of."""
    chosen: dict[str, Column] = {}
    for arm in arms:
        chosen |= {column.name: column for column in changes(arm, arms)}
    for column in list(chosen.values())[:_FRONTIERS]:
        points = [
            (place, name, arm)
            for place, name, arm in named_arms(arms)
            if arm["speedup"] is not None and (arm["is_baseline"] or column.value(arm) is not None)
        ]
        if any(not arm["is_baseline"] for _, _, arm in points):
            yield _frontier(column, points)


def _frontier(column: Column, points: list[tuple[int, str, ArmFigures]]) -> Plot:
    scale, unit = (100.0, " (points)") if _is_yes_no(column) else (1.0, "")
    head = ["arm", "speed-up", column.heading]
    rows = [head]
    with svg.svg_figure(f"frontier-{column.name}") as drawn:
        axes = drawn.axes
        axes.axhline(0, color=svg.MUTED, linewidth=0.8)
        for place, name, arm in points:
            value = 0.0 if arm["is_baseline"] else scale * column.value(arm)
            bounds = None if arm["is_baseline"] else column.bounds(arm)
            if bounds is not None:
                bounds = {key: scale * bounds[key] for key in ("low", "high")}
            colour = svg.colour(place)
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
            point.set_gid(f"point-{place}")
            axes.annotate(
                name,
                (arm["speedup"], value),
                xytext=(-8, 7) if arm["is_baseline"] else (8, 7),
                ha="right" if arm["is_baseline"] else "left",
                textcoords="offset points",
                color=colour,
                fontweight="bold",
                gid=f"label-{place}",
            )
            rows.append(
                [
                    name,
                    _speedup(arm),
                    "0 (by definition)" if arm["is_baseline"] else column.show(arm),
                ]
            )
        if column.better == "lower":
            axes.invert_yaxis()
        axes.margins(x=0.18, y=0.15)
        axes.set_xlabel("speed-up: times as many images a second")
        axes.set_ylabel(f"{column.heading}{unit}")
    return Plot(
        drawn.name,
        f"Speed against quality: {column.heading}",
        "Further right is faster, further up is better; the baseline stands at 1 and 0. Bars are "
        "95% intervals: where one crosses the line at 0, the change may be chance.",
        drawn.svg,
        rows,
    )


def _is_yes_no(column: Column) -> bool:
    return any(metric.yes_no and metric.name == column.of for metric in registry.METRICS)


def _speedup(arm: ArmFigures) -> str:
    found = next(column for column in columns() if column.name == "speedup")
    return found.show(arm)


def gained_and_lost(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """Of yes/no figures: the images that changed."""
    for metric in registry.METRICS:
        if not metric.yes_no:
            continue
        known = [
            (place, name, arm["change"][metric.name])
            for place, name, arm in named_arms(arms)
            if ((arm.get("change") or {}).get(metric.name) or {}).get("count")
        ]
        if known:
            yield _pictures_changed(metric, known)


def _pictures_changed(metric: PictureMetric, known: list[tuple[int, str, Any]]) -> Plot:
    heading = metric.column.heading
    rows = [["arm", "lost", "gained", "the same", "change (points)"]]
    with svg.svg_figure(f"changed-{metric.name}", height=1.2 + 0.45 * len(known)) as drawn:
        axes = drawn.axes
        axes.axvline(0, color=svg.MUTED, linewidth=0.8)
        for line, (place, name, found) in enumerate(known):
            lost, gained, count = found["lost"], found["gained"], found["count"]
            for share, shown, side in ((-lost, lost, -1), (gained, gained, 1)):
                axes.barh(
                    line,
                    100 * share / count,
                    height=0.6,
                    color=svg.colour(place),
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
            points = f"{100 * found['value']:+.1f}"
            if found["low"] is not None:
                points += f" [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
            same = count - lost - gained
            rows.append([name, f"{lost:,}", f"{gained:,}", f"{same:,}", points])
        axes.set_yticks(range(len(known)), [name for _, name, _ in known])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.35)
        axes.set_xlabel("% of the images, to the left lost, to the right gained")
    return Plot(
        drawn.name,
        f"Images that changed: {heading}",
        f"Of the same prompt and seed: lost means that the baseline's image had it ({heading}) "
        "and the arm's has not. Equal lengths to both sides are chance, not damage.",
        drawn.svg,
        rows,
    )


def spreads(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """How the changes of single images spread, one plot a metric."""
    for metric in registry.METRICS:
        known = [
            (place, name, arm, arm["spread"][metric.name])
            for place, name, arm in named_arms(arms)
            if sum(((arm.get("spread") or {}).get(metric.name) or {}).get("counts") or ())
        ]
        if known:
            yield _spread(metric, known)


def _spread(metric: PictureMetric, known: list[tuple[int, str, ArmFigures, Any]]) -> Plot:
    heading, beside = metric.column.heading, metric.needs_baseline
    what = f"{heading} beside the baseline's image" if beside else f"change of {heading}"
    rows = [["arm", what, "pictures"]]
    with svg.svg_figure(f"spread-{metric.name}") as drawn:
        axes = drawn.axes
        held = np.any([np.array(found["counts"]) > 0 for *_, found in known], axis=0)
        first, last = int(held.argmax()), len(held) - int(held[::-1].argmax())
        for place, name, arm, found in known:
            counts = np.array(found["counts"], float)
            edges = np.linspace(found["low"], found["high"], len(counts) + 1)
            colour = svg.colour(place)
            shares = 100 * counts / counts.sum()
            axes.stairs(
                shares[first:last],
                edges[first : last + 1],
                color=colour,
                label=name,
                linestyle=svg.dashes(place),
                linewidth=1.8,
                gid=f"spread-{place}",
            )
            where = "intervals" if beside else "change"
            bounds = (arm.get(where) or {}).get(metric.name)
            if bounds is not None and bounds.get("low") is not None:
                axes.axvspan(bounds["low"], bounds["high"], color=colour, alpha=0.18, linewidth=0)
            rows += [
                [name, f"{edges[at]:g} to {edges[at + 1]:g}", f"{found['counts'][at]:,}"]
                for at in range(first, last)
                if found["counts"][at]
            ]
        axes.set_xlabel(what)
        axes.set_ylabel("% of the images")
        axes.set_ylim(bottom=0)
        drawn.figure.legend(loc="outside upper center", ncols=min(4, len(known)))
    better = {"higher": "Further right is better", "lower": "Further left is better", None: ""}
    closer = ": closer to the baseline's image" if beside else ""
    return Plot(
        drawn.name,
        f"How changes spread: {heading}",
        f"How many images changed how much. {better[metric.column.better]}{closer}. Bands are "
        "95% intervals of the mean; the ends hold all that lies beyond.",
        drawn.svg,
        rows,
    )
