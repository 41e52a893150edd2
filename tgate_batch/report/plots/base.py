"""The plot record, and the names of arms in plots."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tgate_batch.metrics.base import ArmFigures


class Plot(NamedTuple):
    """One plot: what it shows in a title and a sentence, its SVG, and its figures as a table."""

    name: str
    title: str
    caption: str
    svg: str
    rows: list[list[str]]


def name_of(arm: ArmFigures, arms: Sequence[ArmFigures]) -> str:
    """An arm's name, with its model's where there are several."""
    several = len({one["model"] for one in arms}) > 1
    return f"{arm['model']} {arm['arm']}" if several else arm["arm"]


def named_arms(arms: Sequence[ArmFigures]) -> list[tuple[int, str, ArmFigures]]:
    """Each arm with its place in the report, which has its colour, and its name."""
    return [(place, name_of(arm, arms), arm) for place, arm in enumerate(arms)]


def error_bar(value: float, bounds: Mapping[str, float] | None) -> list[list[float]] | None:
    """The two lengths of an error bar; a bias-corrected interval may lie beside the value."""
    if bounds is None:
        return None
    return [[max(0.0, value - bounds["low"])], [max(0.0, bounds["high"] - value)]]
