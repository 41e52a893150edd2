"""When an attention layer computes, stores and reuses: the schedules, in plain Python."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Action(Enum):
    """What an attention layer does at a step."""

    COMPUTE = "compute"
    STORE = "store"  # compute, and keep the output
    REUSE = "reuse"  # return what was kept


@dataclass(frozen=True)
class StepActions:
    """What happens at one step.

    ``guided``: both branches run. ``mean``: a store keeps the mean of the two branches, which is
    what the one branch after the gate reuses.
    """

    cross: Action
    self_: Action
    guided: bool
    mean: bool


@dataclass(frozen=True)
class GatePlan:
    """One T-GATE schedule; steps count from 0. Raises ValueError for values that cannot work.

    With only ``gate_step`` given, cross-attention alone is gated (the method's first version).
    A ``gate_step`` between 0 and 1 is that part of the steps, of which ``at`` makes a step.
    """

    gate_step: int | float  # first fidelity-improving step: guidance and cross-attention stop here
    sp_interval: int = 1  # steps between computed self-attention before the gate; 1: always
    fi_interval: int = 1  # the same from the gate on
    warm_up: int = 0  # steps at the start that compute everything

    def __post_init__(self) -> None:
        whole = {"gate_step": 1} if _is_part(self.gate_step) else {}
        _check_integers(vars(self) | whole, least={"warm_up": 0})

    def at(self, steps: int) -> "GatePlan":
        """The plan of a pipeline call of ``steps`` steps: ``gate_step`` is a step, at least 1."""
        if not _is_part(self.gate_step):
            return self
        return replace(self, gate_step=max(1, round(self.gate_step * steps)))

    def check(self, steps: int) -> None:
        """Raises ValueError when ``steps`` denoising steps never reach the gate."""
        if self.gate_step > steps:
            raise ValueError(
                f"gate_step={self.gate_step} is beyond the {steps} steps, so nothing would be "
                f"gated; choose gate_step <= {steps}"
            )

    def actions(self, step: int) -> StepActions:
        """The reference's schedule at ``step`` (tgate 1.0.0, ``tgate_scheduler``).

        The intervals count from step 0, not from the warm-up.
        """
        if step >= self.gate_step:
            compute = step % self.fi_interval == 0
            self_ = Action.STORE if compute else Action.REUSE
            return StepActions(Action.REUSE, self_, guided=False, mean=False)
        if step == self.gate_step - 1:
            return StepActions(Action.STORE, Action.STORE, guided=True, mean=True)
        if step < self.warm_up:
            self_ = Action.COMPUTE
        elif step == self.warm_up or step % self.sp_interval == 0:
            self_ = Action.STORE
        else:
            self_ = Action.REUSE
        return StepActions(Action.COMPUTE, self_, guided=True, mean=False)

    def schedule(self, steps: int, skips: bool = False) -> tuple[StepActions, ...]:
        """The actions of steps 0..``steps``-1 without the stores that are never read.

        ``skips``: some layers are not called at some steps (DeepCache), so that a store may still
        be read after the next one.
        """
        plan = self.at(steps)
        table = [plan.actions(step) for step in range(steps)]
        for kind in ("cross", "self_"):
            read = False
            for step in reversed(range(steps)):
                action = getattr(table[step], kind)
                if action is Action.REUSE:
                    read = True
                elif action is Action.STORE:
                    if not read:
                        unread: Any = {kind: Action.COMPUTE}
                        table[step] = replace(table[step], **unread)
                    read = read and skips
        return tuple(table)


@dataclass(frozen=True)
class GuidanceInterval:
    """Guidance in the steps from ``first`` to before ``end`` alone; attention is left as it is.

    Outside, the positive branch runs by itself (arXiv 2404.07724; with ``first`` 0, what a gate
    saves of guidance and not of attention). ``end`` between 0 and 1 is a part of the steps, None
    their end. Raises ValueError for values that cannot work.
    """

    first: int = 0
    end: int | float | None = None

    def __post_init__(self) -> None:
        whole = 1 if self.end is None or _is_part(self.end) else self.end
        _check_integers({"first": self.first, "end": whole}, least={"first": 0})
        if isinstance(self.end, int) and self.end <= self.first:
            raise ValueError(
                f"guidance from step {self.first} to before step {self.end} has no step; let it "
                "end later"
            )

    def at(self, steps: int) -> "GuidanceInterval":
        """The interval in a pipeline call of ``steps`` steps: ``end`` is a step."""
        if self.end is not None and _is_part(self.end):
            return replace(self, end=max(self.first + 1, round(self.end * steps)))
        return self

    def check(self, steps: int) -> None:
        """Raises ValueError when ``steps`` denoising steps have none without guidance."""
        if self.first == 0 and (self.end is None or self.end > steps):
            raise ValueError(
                f"guidance from step 0 to {self.end or 'the end'} is guidance at all {steps} "
                "steps; let it begin later or end before"
            )

    def schedule(self, steps: int, skips: bool = False) -> tuple[StepActions, ...]:
        """The actions of steps 0..``steps``-1."""
        end = self.at(steps).end
        return tuple(
            StepActions(
                Action.COMPUTE,
                Action.COMPUTE,
                guided=self.first <= step < (steps if end is None else end),
                mean=False,
            )
            for step in range(steps)
        )


@dataclass(frozen=True)
class DeepCache:
    """DeepCache (arXiv 2312.00858): deep U-Net features are computed every ``interval`` steps.

    ``branch`` is the skip connection that is still computed in between, 0 the shallowest. Raises
    ValueError for values that cannot work.
    """

    interval: int = 3  # steps
    branch: int = 0

    def __post_init__(self) -> None:
        _check_integers(vars(self), least={"branch": 0})


def _is_part(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _check_integers(settings: Mapping[str, Any], least: Mapping[str, int]) -> None:
    for name, value in settings.items():
        smallest = least.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            part = ", or a part of the steps between 0 and 1" if name in _PARTS else ""
            raise ValueError(
                f"{name}={value!r} cannot be counted in steps; use an integer >= {smallest}{part}"
            )


_PARTS = ("gate_step", "end")
