"""The report's tables: one row an arm, for the terminal, Markdown and the page alike."""

from collections.abc import Sequence

from tgate_batch.errors import printable
from tgate_batch.metrics.base import UNKNOWN, ArmFigures, Column
from tgate_batch.metrics.base import Table as TableName
from tgate_batch.report.columns import columns

_INTERVAL = "[95% CI]"


def rows(arms: Sequence[ArmFigures], table: TableName) -> list[list[str]]:
    """The heading row, then one row an arm, of ``table``: speed, images, sets or brief.

    Columns that no arm has a value in are left out.
    """
    brief = table == "brief"
    shown = [
        (heading(column, arms, brief), [column.show(arm, brief) for arm in arms])
        for column in columns(arms)
        if table in column.tables
    ]
    chosen = [(head, cells) for head, cells in shown if any(cell != UNKNOWN for cell in cells)]
    return [
        [head for head, _ in chosen],
        *([cells[row] for _, cells in chosen] for row in range(len(arms))),
    ]


def heading(column: Column, arms: Sequence[ArmFigures], brief: bool) -> str:
    """The column's word, and that its cells have intervals, where one has."""
    with_interval = any(column.bounds(arm) is not None for arm in arms)
    if not with_interval or (brief and not column.change) or column.heading.endswith(_INTERVAL):
        return column.heading
    return f"{column.heading} {_INTERVAL}"


def comparisons(arms: Sequence[ArmFigures], table: TableName) -> int:
    """How many changes with an interval a table shows."""
    return sum(
        column.bounds(arm) is not None and column.value(arm) is not None
        for column in columns(arms)
        if column.change and table in column.tables
        for arm in arms
    )


def markdown(rows: list[list[str]]) -> str:
    """A table in Markdown, a row a line, whatever a cell says."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    cells = ([printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
