"""The table that every plan is: one row per step, decided before anything runs.

Plans only make a table, hooks only execute it, and MACs, memory and texts only read it. One word
serves every column: a thing is computed, computed and stored, or reused.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import prod
from typing import Any


class Action(Enum):
    """What happens at a step with an attention layer, a difference of branches, or an output."""

    COMPUTE = "compute"
    STORE = "store"  # compute, and keep the output
    REUSE = "reuse"  # return what was kept


@dataclass(frozen=True)
class StepActions:
    """One row of a table.

    ``guided``: both guidance branches run. Otherwise one runs, and its output is given for both;
    if ``difference`` is REUSE, the stored difference of the branches is added for the other one.
    ``mean``: a store keeps the mean of the two branches, which the one branch after the gate
    reuses. ``output`` is STORE if a later step is forecast from this one, and REUSE if the denoiser
    does not run: its output is then the sum of ``sources``, pairs of a step and the weight of that
    step's output. ``strength`` multiplies the difference of the branches.
    """

    cross: Action = Action.COMPUTE
    self_: Action = Action.COMPUTE
    guided: bool = True
    mean: bool = False
    difference: Action = Action.COMPUTE
    output: Action = Action.COMPUTE
    sources: tuple[tuple[int, float], ...] = ()
    strength: float = 1.0

    @property
    def is_forecast(self) -> bool:
        return self.output is Action.REUSE

    @property
    def is_guidance(self) -> bool:
        """True if the pipeline's guidance acts: both branches differ, run or not."""
        return self.guided or self.difference is Action.REUSE


Table = tuple[StepActions, ...]


def with_reused_self_attention(table: Sequence[StepActions], interval: int, first: int) -> Table:
    """Computes self-attention at step ``first`` and every ``interval`` steps, and where a branch
    joins in; reuses it elsewhere from ``first`` on."""
    rows = []
    for step, row in enumerate(table):
        joins = row.guided and step > 0 and not table[step - 1].guided
        if step < first:
            self_ = Action.COMPUTE
        elif step == first or step % interval == 0 or joins:
            self_ = Action.STORE
        else:
            self_ = Action.REUSE
        rows.append(replace(row, self_=self_))
    return tuple(rows)


def with_forecasts(table: Sequence[StepActions], steps: Collection[int], order: int) -> Table:
    """Forecasts the output at ``steps`` from the last ``order`` + 1 steps that compute it.

    The weights are those of the polynomial through them, in steps. Only steps count at which
    guidance acts as it does now; where there is none, the step is computed. What a forecast step
    should have stored is stored by the step before it (a gate's mean) or after it.
    """
    rows = list(table)
    computed: list[int] = []
    for step, row in enumerate(table):
        alike = [one for one in computed if rows[one].is_guidance == row.is_guidance]
        if step not in steps or not alike:
            computed.append(step)
            continue
        used = alike[-order - 1 :]
        rows[step] = StepActions(
            guided=row.guided,
            difference=Action.REUSE if row.difference is Action.REUSE else Action.COMPUTE,
            output=Action.REUSE,
            sources=tuple(zip(used, extrapolation(used, step), strict=True)),
            strength=row.strength,
        )
        for one in used:
            rows[one] = replace(rows[one], output=Action.STORE)
        if row.mean:
            rows[used[-1]] = replace(
                rows[used[-1]], cross=Action.STORE, self_=Action.STORE, mean=True
            )
        else:
            _hand_on(rows, step, row, steps)
    return tuple(rows)


def _hand_on(
    rows: list[StepActions], step: int, row: StepActions, forecast: Collection[int]
) -> None:
    """Lets the next computed step store what the forecast ``step`` should have stored."""
    later = next((one for one in range(step + 1, len(rows)) if one not in forecast), None)
    if later is None:
        return
    if row.difference is Action.STORE and rows[later].difference is Action.REUSE:
        joins = rows[later].self_ is Action.REUSE
        self_ = Action.STORE if joins else rows[later].self_
        rows[later] = replace(rows[later], guided=True, difference=Action.STORE, self_=self_)
    if row.self_ is Action.STORE and rows[later].self_ is Action.REUSE:
        rows[later] = replace(rows[later], self_=Action.STORE)


def extrapolation(nodes: Sequence[int], at: int) -> list[float]:
    """Returns the weights of values at ``nodes`` in their polynomial's value at ``at``."""
    return [prod((at - two) / (one - two) for two in nodes if two != one) for one in nodes]


def without_unread_stores(table: Sequence[StepActions], skips: bool = False) -> Table:
    """Returns the table without the stores that nothing reads.

    ``skips``: some layers are not called at some steps (DeepCache), so that a store may still be
    read after the next one.
    """
    rows = list(table)
    for kind in ("cross", "self_", "difference"):
        read = False
        for step in reversed(range(len(rows))):
            action = getattr(rows[step], kind)
            if rows[step].is_forecast:
                continue
            if action is Action.REUSE:
                read = True
            elif action is Action.STORE:
                if not read:
                    unread: Any = {kind: Action.COMPUTE}
                    rows[step] = replace(rows[step], **unread)
                read = read and skips
    return tuple(rows)


def text_of(table: Sequence[StepActions]) -> str:
    """Returns the table as four lines of text, one sign per step.

    Denoiser: # runs, ~ forecast. Guidance: 2 both branches, 1 one, d one plus the stored
    difference, w both at another weight. Attention: # computed, s stored too, . reused.
    """
    signs = {Action.COMPUTE: "#", Action.STORE: "s", Action.REUSE: "."}

    def line(name: str, sign: Callable[[StepActions], str]) -> str:
        return f"{name:<16}" + "".join("~" if row.is_forecast else sign(row) for row in table)

    def branches(row: StepActions) -> str:
        if row.strength != 1:
            return "w"
        return "2" if row.guided else "d" if row.difference is Action.REUSE else "1"

    return "\n".join(
        (
            line("denoiser", lambda row: "#"),
            line("guidance", branches),
            line("cross-attention", lambda row: signs[row.cross]),
            line("self-attention", lambda row: signs[row.self_]),
        )
    )
