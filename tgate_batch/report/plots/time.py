"""Plots of time: by stage, over the run, and by worker."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tgate_batch.report.columns import ArmFigures
from tgate_batch.report.plots import svg
from tgate_batch.report.plots.base import Plot, error_bar, named_arms

_DOTS = 200  # workers of an arm that are plotted, at most
_STAGES = ("denoise", "decode", "encode")
_WHOLE = ("load", "text", "denoise", "decode", "idle")


def stages(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """Seconds per image by stage, one bar per arm."""
    known = [
        (index, name, arm["seconds_per_image"])
        for index, name, arm in named_arms(arms)
        if any((arm.get("seconds_per_image") or {}).get(stage) for stage in _STAGES)
    ]
    if not known:
        return
    rows = [["arm", *(f"{stage} (s)" for stage in _STAGES), "together (s)"]]
    with svg.svg_figure("stages", height=1.1 + 0.42 * len(known)) as plot:
        axes = plot.axes
        for line, (_, name, seconds) in enumerate(known):
            left = 0.0
            for number, stage in enumerate(_STAGES):
                width = seconds.get(stage) or 0.0
                axes.barh(
                    line,
                    width,
                    left=left,
                    height=0.62,
                    color=svg.STAGES[number],
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
        plot.figure.legend(loc="outside upper center", ncols=len(_STAGES))
    yield Plot(
        plot.name,
        "Where the time of one image goes",
        "Denoising computes the image step by step, decoding turns it into pixels, encoding "
        "compresses it (on CPU threads, in parallel with the device).",
        plot.svg,
        rows,
    )


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def whole(workers: Mapping[str, Any] | None) -> Iterator[Plot]:
    """Shares of the workers' time from start to last file."""
    if workers is None or not workers["seconds"]["wall"]:
        return
    seconds = workers["seconds"]
    shares = [100 * seconds[stage] / seconds["wall"] for stage in _WHOLE]
    with svg.svg_figure("whole", height=1.55) as plot:
        axes, left = plot.axes, 0.0
        for number, (stage, share) in enumerate(zip(_WHOLE, shares, strict=True)):
            axes.barh(
                0, share, left=left, height=0.5, color=svg.STAGES[(number + 3) % 5], label=stage
            )
            left += share
        axes.set_yticks([])
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("% of the workers' time")
        plot.figure.legend(loc="outside upper center", ncols=len(_WHOLE), columnspacing=1.0)
    many = "s" if workers["workers"] > 1 else ""
    yield Plot(
        plot.name,
        "Where the time of the whole run went",
        f"{workers['workers']} worker{many} from start to last file. Load: reading the model; "
        "text: reading the prompts; idle: waiting for work.",
        plot.svg,
        [
            ["stage", "seconds", "share"],
            *(
                [stage, f"{seconds[stage]:.1f}", f"{share:.1f}%"]
                for stage, share in zip(_WHOLE, shares, strict=True)
            ),
        ],
    )


def course(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """Images per second from the first prompts to the last."""
    known = [
        (index, name, arm)
        for index, name, arm in named_arms(arms)
        if len(arm.get("course") or ()) > 1
    ]
    if not known:
        return
    rows = [["arm", "% of the images", "images/s of a worker"]]
    with svg.svg_figure("course") as plot:
        axes = plot.axes
        for index, name, arm in known:
            images = np.array([point["images"] for point in arm["course"]], float)
            seconds = np.array([point["seconds"] for point in arm["course"]])
            ends = 100 * np.cumsum(images) / images.sum()
            edges, rates = np.concatenate([[0.0], ends]), images / seconds
            colour = svg.colour(index)
            axes.stairs(
                rates,
                edges,
                baseline=None,
                color=colour,
                label=name,
                linestyle=svg.dashes(index),
                linewidth=1.8,
                gid=f"course-{index}",
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
        plot.figure.legend(loc="outside upper center", ncols=min(4, len(known)))
    yield Plot(
        plot.name,
        "Speed over the run",
        "A steady run has level lines; at a dip the machine was slow or had other work. Bands are "
        "95% intervals of the arm's overall speed.",
        plot.svg,
        rows,
    )


def workers(arms: Sequence[ArmFigures]) -> Iterator[Plot]:
    """Images per second of each worker."""
    known = []
    for index, name, arm in named_arms(arms):
        timed = (arm.get("by_worker") or {}).items()
        rates = {worker: one["images"] / one["seconds"] for worker, one in timed if one["seconds"]}
        if rates:
            known.append((index, name, arm, rates))
    if not known or max(len(rates) for *_, rates in known) < 2:
        return
    rows = [["arm", "worker", "images/s", "images"]]
    with svg.svg_figure("workers") as plot:
        axes = plot.axes
        for line, (index, name, arm, rates) in enumerate(known):
            shown = sorted(rates.items(), key=lambda item: item[1])
            shown = shown[:: -(-len(shown) // _DOTS)]
            colour = svg.colour(index)
            spread = np.linspace(-0.22, 0.22, len(shown)) if len(shown) > 1 else np.zeros(1)
            axes.plot(
                line + spread,
                [rate for _, rate in shown],
                "o",
                color=colour,
                markersize=6,
                alpha=0.85,
                gid=f"workers-{index}",
            )
            bounds = arm.get("images_per_second_interval")
            if bounds is not None:
                value = arm["images_per_second_per_worker"]
                axes.errorbar(
                    line + 0.36,
                    value,
                    yerr=error_bar(value, bounds),
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
        plot.name,
        "Speed of each worker",
        "Dots far below the others are workers on a slow or shared machine. Bars are the arm's "
        "speed over all workers, with its 95% interval.",
        plot.svg,
        rows,
    )
