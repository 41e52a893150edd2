"""The page's plots, from the content of report.json; each has its figures as a table, too."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tgate_batch.metrics.entry import Arm, Column, PictureMetric
from tgate_batch.report import drawing
from tgate_batch.report.columns import columns
from tgate_batch.report.verdict import changes
from tgate_batch.score import metrics

_FRONTIERS = 2  # at most
_DOTS = 200  # workers of an arm that are drawn
_STAGES = ("denoise", "decode", "encode")
_WHOLE = ("load", "text", "denoise", "decode", "idle")


class Plot(NamedTuple):
    """One plot: what it shows in a title and a sentence, its SVG, and its figures as a table."""

    name: str
    title: str
    caption: str
    svg: str
    rows: list[list[str]]


def plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Those that there is something to draw of."""
    arms = summary["arms"]
    return [
        *_frontiers(arms),
        *_stages(arms),
        *_whole(summary["workers"]),
        *_course(arms),
        *_workers(arms),
        *_gained_and_lost(arms),
        *_spreads(arms),
    ]


def name_of(arm: Arm, arms: Sequence[Arm]) -> str:
    """An arm's name, with its model's where there are several."""
    several = len({one["model"] for one in arms}) > 1
    return f"{arm['model']} {arm['arm']}" if several else arm["arm"]


def _named(arms: Sequence[Arm]) -> list[tuple[int, str, Arm]]:
    return [(place, name_of(arm, arms), arm) for place, arm in enumerate(arms)]


def _around(value: float, bounds: Mapping[str, float] | None) -> list[list[float]] | None:
    """The two lengths of an error bar; a bias-corrected interval may lie beside the value."""
    if bounds is None:
        return None
    return [[max(0.0, value - bounds["low"])], [max(0.0, bounds["high"] - value)]]


def _frontiers(arms: Sequence[Arm]) -> Iterator[Plot]:
    """Speed against each change of quality that the verdict speaks of."""
    chosen: dict[str, Column] = {}
    for arm in arms:
        chosen |= {column.name: column for column in changes(arm, arms)}
    for column in list(chosen.values())[:_FRONTIERS]:
        points = [
            (place, name, arm)
            for place, name, arm in _named(arms)
            if arm["speedup"] is not None and (arm["is_baseline"] or column.value(arm) is not None)
        ]
        if any(not arm["is_baseline"] for _, _, arm in points):
            yield _frontier(column, points)


def _frontier(column: Column, points: list[tuple[int, str, Arm]]) -> Plot:
    scale, unit = (100.0, " (points)") if _is_yes_no(column) else (1.0, "")
    head = ["arm", "speed-up", column.heading]
    rows = [head]
    with drawing.drawing(f"frontier-{column.name}") as drawn:
        axes = drawn.axes
        axes.axhline(0, color=drawing.MUTED, linewidth=0.8)
        for place, name, arm in points:
            value = 0.0 if arm["is_baseline"] else scale * column.value(arm)
            bounds = None if arm["is_baseline"] else column.bounds(arm)
            if bounds is not None:
                bounds = {key: scale * bounds[key] for key in ("low", "high")}
            colour = drawing.colour(place)
            point, _, _ = axes.errorbar(
                arm["speedup"],
                value,
                xerr=_around(arm["speedup"], arm.get("speedup_interval")),
                yerr=_around(value, bounds),
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
    return any(metric.yes_no and metric.name == column.of for metric in metrics.METRICS)


def _speedup(arm: Arm) -> str:
    found = next(column for column in columns() if column.name == "speedup")
    return found.show(arm)


def _stages(arms: Sequence[Arm]) -> Iterator[Plot]:
    """Seconds of one picture by stage, one bar an arm."""
    known = [
        (place, name, arm["seconds_per_image"])
        for place, name, arm in _named(arms)
        if any((arm.get("seconds_per_image") or {}).get(stage) for stage in _STAGES)
    ]
    if not known:
        return
    rows = [["arm", *(f"{stage} (s)" for stage in _STAGES), "together (s)"]]
    with drawing.drawing("stages", height=1.1 + 0.42 * len(known)) as drawn:
        axes = drawn.axes
        for line, (_, name, seconds) in enumerate(known):
            left = 0.0
            for number, stage in enumerate(_STAGES):
                width = seconds.get(stage) or 0.0
                axes.barh(
                    line,
                    width,
                    left=left,
                    height=0.62,
                    color=drawing.STAGES[number],
                    label=stage if line == 0 else None,
                    gid=f"bar-{line}-{stage}",
                )
                left += width
            axes.annotate(
                _seconds(left), (left, line), xytext=(5, 0), textcoords="offset points", va="center"
            )
            shown = [_seconds(seconds.get(stage)) for stage in _STAGES]
            rows.append([name, *shown, _seconds(left)])
        axes.set_yticks(range(len(known)), [name for _, name, _ in known])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlabel("seconds of a worker for one image")
        drawn.figure.legend(loc="outside upper center", ncols=len(_STAGES))
    yield Plot(
        drawn.name,
        "Where the time of one image goes",
        "Denoising makes the picture step by step, decoding turns it into pixels, encoding "
        "compresses it (on threads beside the device, so it seldom makes anything wait).",
        drawn.svg,
        rows,
    )


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _whole(workers: Mapping[str, Any] | None) -> Iterator[Plot]:
    """All that the workers did from start to last file."""
    if workers is None or not workers["seconds"]["wall"]:
        return
    seconds = workers["seconds"]
    shares = [100 * seconds[stage] / seconds["wall"] for stage in _WHOLE]
    with drawing.drawing("whole", height=1.55) as drawn:
        axes, left = drawn.axes, 0.0
        for number, (stage, share) in enumerate(zip(_WHOLE, shares, strict=True)):
            axes.barh(
                0, share, left=left, height=0.5, color=drawing.STAGES[(number + 3) % 5], label=stage
            )
            left += share
        axes.set_yticks([])
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("% of the workers' time")
        drawn.figure.legend(loc="outside upper center", ncols=len(_WHOLE), columnspacing=1.0)
    many = "s" if workers["workers"] > 1 else ""
    yield Plot(
        drawn.name,
        "Where the time of the whole run went",
        f"{workers['workers']} worker{many} from start to last file. Load: reading the model; "
        "text: reading the prompts; idle: waiting for work.",
        drawn.svg,
        [
            ["stage", "seconds", "share"],
            *(
                [stage, f"{seconds[stage]:.1f}", f"{share:.1f}%"]
                for stage, share in zip(_WHOLE, shares, strict=True)
            ),
        ],
    )


def _course(arms: Sequence[Arm]) -> Iterator[Plot]:
    """Images a second from the first prompts to the last."""
    known = [
        (place, name, arm) for place, name, arm in _named(arms) if len(arm.get("course") or ()) > 1
    ]
    if not known:
        return
    rows = [["arm", "% of the images", "images/s of a worker"]]
    with drawing.drawing("course") as drawn:
        axes = drawn.axes
        for place, name, arm in known:
            images = np.array([point["images"] for point in arm["course"]], float)
            seconds = np.array([point["seconds"] for point in arm["course"]])
            ends = 100 * np.cumsum(images) / images.sum()
            edges, rates = np.concatenate([[0.0], ends]), images / seconds
            colour = drawing.colour(place)
            axes.stairs(
                rates,
                edges,
                baseline=None,
                color=colour,
                label=name,
                linestyle=drawing.dashes(place),
                linewidth=1.8,
                gid=f"course-{place}",
            )
            bounds = arm.get("images_per_second_interval")
            if bounds is not None:
                axes.axhspan(bounds["low"], bounds["high"], color=colour, alpha=0.14, linewidth=0)
            rows += [
                [name, f"{start:.0f} to {end:.0f}", f"{rate:.2f}"]
                for start, end, rate in zip(edges, ends, rates, strict=False)
            ]
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the images, in the order of the prompts")
        axes.set_ylabel("images/s of a worker")
        drawn.figure.legend(loc="outside upper center", ncols=min(4, len(known)))
    yield Plot(
        drawn.name,
        "Speed over the run",
        "A steady run has level lines; a dip is a time when the machine had other work or was "
        "slow. Bands are 95% intervals of the arm's whole speed.",
        drawn.svg,
        rows,
    )


def _workers(arms: Sequence[Arm]) -> Iterator[Plot]:
    """Images a second of each worker."""
    known = []
    for place, name, arm in _named(arms):
        timed = (arm.get("by_worker") or {}).items()
        rates = {worker: one["images"] / one["seconds"] for worker, one in timed if one["seconds"]}
        if rates:
            known.append((place, name, arm, rates))
    if not known or max(len(rates) for *_, rates in known) < 2:
        return
    rows = [["arm", "worker", "images/s", "images"]]
    with drawing.drawing("workers") as drawn:
        axes = drawn.axes
        for line, (place, name, arm, rates) in enumerate(known):
            shown = sorted(rates.items(), key=lambda item: item[1])
            shown = shown[:: -(-len(shown) // _DOTS)]
            colour = drawing.colour(place)
            spread = np.linspace(-0.22, 0.22, len(shown)) if len(shown) > 1 else np.zeros(1)
            axes.plot(
                line + spread,
                [rate for _, rate in shown],
                "o",
                color=colour,
                markersize=6,
                alpha=0.85,
                gid=f"workers-{place}",
            )
            bounds = arm.get("images_per_second_interval")
            if bounds is not None:
                value = arm["images_per_second_per_worker"]
                axes.errorbar(
                    line + 0.36,
                    value,
                    yerr=_around(value, bounds),
                    color=colour,
                    marker="_",
                    markersize=12,
                    capsize=4,
                )
            rows += [
                [name, worker, f"{rate:.2f}", f"{arm['by_worker'][worker]['images']:,}"]
                for worker, rate in shown
            ]
        axes.set_xticks(range(len(known)), [name for _, name, *_ in known])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.15)
        axes.set_ylabel("images/s")
        axes.set_xlabel("arm; one dot a worker")
    yield Plot(
        drawn.name,
        "Speed of each worker",
        "Dots far below the others are workers on a slow or shared machine. The bars are the arm's "
        "speed over all workers with its 95% interval.",
        drawn.svg,
        rows,
    )


def _gained_and_lost(arms: Sequence[Arm]) -> Iterator[Plot]:
    """Of yes/no figures: the pictures that changed."""
    for metric in metrics.METRICS:
        if not metric.yes_no:
            continue
        known = [
            (place, name, arm["change"][metric.name])
            for place, name, arm in _named(arms)
            if ((arm.get("change") or {}).get(metric.name) or {}).get("count")
        ]
        if known:
            yield _pictures_changed(metric, known)


def _pictures_changed(metric: PictureMetric, known: list[tuple[int, str, Any]]) -> Plot:
    heading = metric.column.heading
    rows = [["arm", "lost", "gained", "the same", "change (points)"]]
    with drawing.drawing(f"changed-{metric.name}", height=1.2 + 0.45 * len(known)) as drawn:
        axes = drawn.axes
        axes.axvline(0, color=drawing.MUTED, linewidth=0.8)
        for line, (place, name, found) in enumerate(known):
            lost, gained, count = found["lost"], found["gained"], found["count"]
            for share, shown, side in ((-lost, lost, -1), (gained, gained, 1)):
                axes.barh(
                    line,
                    100 * share / count,
                    height=0.6,
                    color=drawing.colour(place),
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
        axes.set_xlabel("% of the pictures, to the left lost, to the right gained")
    return Plot(
        drawn.name,
        f"Pictures that changed: {heading}",
        f"Of the same prompt and seed: lost means that the baseline's picture had it ({heading}) "
        "and the arm's has not. Equal lengths to both sides are chance, not damage.",
        drawn.svg,
        rows,
    )


def _spreads(arms: Sequence[Arm]) -> Iterator[Plot]:
    """How the changes of single pictures spread, one plot a metric."""
    for metric in metrics.METRICS:
        known = [
            (place, name, arm, arm["spread"][metric.name])
            for place, name, arm in _named(arms)
            if sum(((arm.get("spread") or {}).get(metric.name) or {}).get("counts") or ())
        ]
        if known:
            yield _spread(metric, known)


def _spread(metric: PictureMetric, known: list[tuple[int, str, Arm, Any]]) -> Plot:
    heading, beside = metric.column.heading, metric.needs_baseline
    what = f"{heading} beside the baseline's picture" if beside else f"change of {heading}"
    rows = [["arm", what, "pictures"]]
    with drawing.drawing(f"spread-{metric.name}") as drawn:
        axes = drawn.axes
        held = np.any([np.array(found["counts"]) > 0 for *_, found in known], axis=0)
        first, last = int(held.argmax()), len(held) - int(held[::-1].argmax())
        for place, name, arm, found in known:
            counts = np.array(found["counts"], float)
            edges = np.linspace(found["low"], found["high"], len(counts) + 1)
            colour = drawing.colour(place)
            shares = 100 * counts / counts.sum()
            axes.stairs(
                shares[first:last],
                edges[first : last + 1],
                color=colour,
                label=name,
                linestyle=drawing.dashes(place),
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
        axes.set_ylabel("% of the pictures")
        axes.set_ylim(bottom=0)
        drawn.figure.legend(loc="outside upper center", ncols=min(4, len(known)))
    better = {"higher": "Further right is better", "lower": "Further left is better", None: ""}
    closer = ": closer to the baseline's picture" if beside else ""
    return Plot(
        drawn.name,
        f"How changes spread: {heading}",
        f"How many pictures changed how much. {better[metric.column.better]}{closer}. Bands are "
        "95% intervals of the mean; the ends hold all that lies beyond.",
        drawn.svg,
        rows,
    )
