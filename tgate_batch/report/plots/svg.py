"""Renders matplotlib figures as SVG for the page, in the page's colours and font.

A colour here is a placeholder that becomes a CSS variable, so that a plot follows the theme. Text
stays text. Equal data give equal bytes.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#000001", "#000002", "#000003", "#000004"
ARMS = tuple(f"#0000{number:02x}" for number in range(16, 24))  # the baseline's first
STAGES = tuple(f"#0000{number:02x}" for number in range(32, 37))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--paper",
    **{colour: f"--arm-{number}" for number, colour in enumerate(ARMS)},
    **{colour: f"--stage-{number}" for number, colour in enumerate(STAGES)},
}
_SIZE = (5.2, 3.4)  # inches; phones scale it to 70%
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.8,
}


def colour(index: int) -> str:
    """Returns the colour of an arm, by its index in the report."""
    return ARMS[index % len(ARMS)]


def dashes(index: int) -> str:
    """Returns the line style of an arm, which distinguishes arms of one colour."""
    return ("-", "--", ":", "-.")[index // len(ARMS) % 4]


class SvgFigure:
    """A matplotlib figure; ``svg`` is set when its block has ended."""

    def __init__(self, name: str, height: float):
        self.name = name
        self.svg = ""
        self.figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()


@contextmanager
def svg_figure(name: str, height: float = _SIZE[1]) -> Iterator[SvgFigure]:
    """Opens a figure with one pair of axes; ``name`` makes its ids unique on the page."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        plot = SvgFigure(name, height)
        yield plot
        stream = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        plot.figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    plot.svg = _embeddable(stream.getvalue(), name)


def _embeddable(svg: str, name: str) -> str:
    """Makes an SVG file part of a page: unique ids, the page's font and colours, no XML header."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r' width="[^"]*" height="[^"]*"', "", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    return svg
