"""The report's tables with one row per arm, for the terminal, Markdown and the page."""

from collections.abc import Sequence

from tgate_batch.errors import printable
from tgate_batch.report.columns import UNKNOWN, ArmFigures, Column, Table, columns

INTERVAL = "[95% CI]"  # ends the heading of a column with intervals


def rows(arms: Sequence[ArmFigures], table: Table) -> list[list[str]]:
    """Returns the heading row and one row per arm; columns without any value are left out."""
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
    """Returns the column's heading, marked if its cells have intervals."""
    with_interval = any(column.bounds(arm) is not None for arm in arms)
    if not with_interval or (brief and not column.change) or column.heading.endswith(INTERVAL):
        return column.heading
    return f"{column.heading} {INTERVAL}"


def comparisons(arms: Sequence[ArmFigures], table: Table) -> int:
    """Returns the number of changes with an interval in a table."""
    return sum(
        column.bounds(arm) is not None and column.value(arm) is not None
        for column in columns(arms)
        if column.change and table in column.tables
        for arm in arms
    )


def markdown(rows: list[list[str]]) -> str:
    """Returns a table in Markdown, one line per row; cells are escaped."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    cells = ([printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
