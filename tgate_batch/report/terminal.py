"""The summary at the end of a run, in a terminal or a log: the brief table and the verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from tgate_batch import console
from tgate_batch.report.columns import ArmFigures
from tgate_batch.report.result_table import rows
from tgate_batch.report.sections import withheld
from tgate_batch.report.verdict import verdicts

_LOG_WIDTH = 160  # columns, without a terminal
_GAP = "  "


def show(summary: Mapping[str, Any]) -> None:
    """Logs the brief table, each arm's verdict, its thresholds and its errors."""
    arms = summary["arms"]
    if console.is_json():
        for arm in arms:
            console.info(f"{arm['model']} {arm['arm']}", event="scores", **arm)
    else:
        for line in table(rows(arms, "brief"), width()):
            console.info(line)
    for line in withheld(arms, "brief"):
        console.info(line, event="withheld")
    for line in verdicts(summary):
        console.info(line, event="verdict")
    for arm in arms:
        for judged in arm["thresholds"]:
            console.info(f"{_name(arm)}: {judged['verdict']}", event="threshold")
    images, errors = (sum(arm[key] for arm in arms) for key in ("images", "errors"))
    console.info(f"{images:,} images, {errors:,} errors")
    for arm in arms:
        for kind in arm["error_kinds"] or ():
            console.info(f"  {_name(arm)}: {kind['rows']:,} x {kind['error']}")


def width() -> int:
    """Returns the number of columns of the terminal; of a log, if there is none."""
    stream = console.out()
    return console.width(stream) if Console(file=stream).is_terminal else _LOG_WIDTH


def table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Returns a table as lines of at most ``width`` columns; no cell is cut.

    If it does not fit, it is transposed; if that does not fit either, each row becomes a block. The
    first two cells of a row are its names.
    """
    head, *body = rows
    names = ["", *(" ".join(row[:2]) for row in body)]
    transposed = [names, *map(list, zip(*(row[2:] for row in rows), strict=True))]
    for cells, left in ((rows, 2), (transposed, 1)):
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        if sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
            rule = ["-" * each for each in widths]
            return [_line(row, widths, left) for row in (cells[0], rule, *cells[1:])]
    longest = max(map(cell_len, head[2:]), default=0)
    return [
        line
        for row in body
        for line in (
            " ".join(row[:2]),
            *(
                f"{_GAP}{heading}{' ' * (longest - cell_len(heading))}{_GAP}{cell}"
                for heading, cell in zip(head[2:], row[2:], strict=True)
            ),
        )
    ]


def _line(row: Sequence[str], widths: Sequence[int], left: int) -> str:
    """Aligns the first cells to the left, figures to the right."""
    cells = []
    for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
        space = " " * (width - cell_len(cell))
        cells.append(cell + space if number < left else space + cell)
    return _GAP.join(cells).rstrip()


def _name(arm: ArmFigures) -> str:
    return f"{arm['model']} {arm['arm']}"
