"""The number of prompts that a run needs to show a difference, from a pilot run."""

from collections.abc import Sequence
from math import isfinite

from tgate_batch.errors import UserError
from tgate_batch.metrics.jackknife import Estimate, prompts_needed
from tgate_batch.report.columns import ArmFigures, Column, columns


def plan_size(arms: Sequence[ArmFigures], see: str) -> list[str]:
    """Returns a line per arm: how many prompts show ``see`` with power 90% at a one-sided 5%.

    ``arms`` are entries of report.json; ``see`` is a figure and a difference in its units, for
    example ``clip_score_change -0.2``. Raises UserError for an unknown figure, a difference of 0,
    and if the figure has no interval in any arm.
    """
    column, difference = _parse(see)
    if not arms:
        raise UserError(
            "the run has no scores of this model and arm. Fix: run tgate-batch score first"
        )
    judged = [arm for arm in arms if not (column.beside_baseline and arm.get("is_baseline"))]
    lines = [_line(arm, column, difference) for arm in judged if column.bounds(arm) is not None]
    if not lines:
        reasons = [column.reason(arm) for arm in judged]
        reason = next(filter(None, reasons), "it was not compared with a baseline")
        raise UserError(f"{column.name} has no interval to plan from: {reason}")
    return lines


def _line(arm: ArmFigures, column: Column, difference: float) -> str:
    bounds = column.bounds(arm)
    assert bounds is not None
    error = Estimate(bounds["value"], bounds["low"], bounds["high"]).standard_error
    prompts = (arm.get("prompts_compared") if column.beside_baseline else None) or arm["prompts"]
    needed = prompts_needed(prompts, error, difference)
    return (
        f"{arm['model']} {arm['arm']}: {needed:,} prompts show {column.name} {difference:+g} "
        f"with power 90% (this run: {prompts:,} prompts, standard error {error:.3g})"
    )


def _parse(see: str) -> tuple[Column, float]:
    known = {column.name: column for column in columns() if column.interval}
    try:
        name, number = see.split()
        difference = float(number)
        if not isfinite(difference):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--see {see!r} is not a figure and a difference. Fix: give e.g. "
            "'clip_score_change -0.2'"
        ) from None
    if name not in known:
        raise UserError(f"--see: unknown figure {name!r}. Fix: give one of: {', '.join(known)}")
    if difference == 0:
        raise UserError(f"--see {see!r}: no number of prompts shows a difference of 0")
    return known[name], difference
