"""The record of a plot, and the names and positions of arms in plots."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tgate_batch.report.columns import ArmFigures


class Plot(NamedTuple):
    """One plot: title, caption, SVG, and its figures as a table."""

    name: str
    title: str
    caption: str
    svg: str
    rows: list[list[str]]


def name_of(arm: ArmFigures, arms: Sequence[ArmFigures]) -> str:
    """Returns an arm's name, with its model's if there are several."""
    several = len({one["model"] for one in arms}) > 1
    return f"{arm['model']} {arm['arm']}" if several else arm["arm"]


def named_arms(arms: Sequence[ArmFigures]) -> list[tuple[int, str, ArmFigures]]:
    """Returns each arm with its index in the report, which selects its colour, and its name."""
    return [(index, name_of(arm, arms), arm) for index, arm in enumerate(arms)]


def error_bar(value: float, bounds: Mapping[str, float] | None) -> list[list[float]] | None:
    """Returns the two lengths of an error bar, which may be 0 for a bias-corrected interval."""
    if bounds is None:
        return None
    return [[max(0.0, value - bounds["low"])], [max(0.0, bounds["high"] - value)]]
