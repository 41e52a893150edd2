"""The plans, in plain Python: each fills some columns of a table of one row per step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tgate_batch.gate.table import (
    Action,
    StepActions,
    Table,
    with_forecasts,
    with_reused_self_attention,
    without_unread_stores,
)


class Plan:
    """Base class of all plans."""

    def at(self, steps: int) -> Any:
        """The plan of a pipeline call of ``steps`` steps: parts of the steps become steps."""
        return self

    def fill(self, table: Table) -> Table:
        """Returns ``table`` with this plan's columns; the plan has no parts of steps any more."""
        raise NotImplementedError

    def schedule(self, steps: int, skips: bool = False) -> Table:
        """The actions of steps 0..``steps``-1 without the stores that are never read.

        ``skips``: some layers are not called at some steps (DeepCache).
        """
        plain = (StepActions(),) * steps
        return without_unread_stores(self.at(steps).fill(plain), skips)

    def check(self, steps: int) -> None:
        """Raises ValueError when ``steps`` denoising steps all compute everything."""
        if all(row == StepActions() for row in self.schedule(steps)):
            raise ValueError(
                f"{self} changes none of the {steps} steps. Fix: let it begin earlier, or leave it "
                "out"
            )

    @property
    def parts(self) -> tuple["Plan", ...]:
        """The plans of a combination; of any other plan, itself."""
        return (self,)

    def part(self, kind: type) -> Any:
        """Returns the part of this kind, None if there is none."""
        return next((part for part in self.parts if isinstance(part, kind)), None)


@dataclass(frozen=True)
class GatePlan(Plan):
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
        return replace(self, gate_step=max(1, _step(self.gate_step, steps)))

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
            return StepActions(Action.REUSE, self_, guided=False)
        if step == self.gate_step - 1:
            return StepActions(Action.STORE, Action.STORE, mean=True)
        if step < self.warm_up:
            self_ = Action.COMPUTE
        elif step == self.warm_up or step % self.sp_interval == 0:
            self_ = Action.STORE
        else:
            self_ = Action.REUSE
        return StepActions(Action.COMPUTE, self_)

    def fill(self, table: Table) -> Table:
        return tuple(map(self.actions, range(len(table))))


@dataclass(frozen=True)
class GuidanceInterval(Plan):
    """Guidance in the steps from ``first`` to before ``end`` alone; attention is left as it is.

    Outside, the positive branch runs by itself (arXiv 2404.07724; with ``first`` 0, what a gate
    saves of guidance and not of attention). ``end`` between 0 and 1 is a part of the steps, None
    their end. ``then="reuse"``: from ``end`` on, the last difference of the two branches stays in
    force, and both branches run every ``every`` steps to refresh it. ``weights`` are guidance
    scales by the step (or part of the steps) they begin at, or one per step, instead of ``scale``,
    with which the pipeline is called; a weight of 1 runs the positive branch alone. Raises
    ValueError for values that cannot work.
    """

    first: int = 0
    end: int | float | None = None
    then: Literal["none", "reuse"] = "none"
    every: int | None = None
    weights: tuple[tuple[int | float, float], ...] = ()  # given also as a mapping, or one per step
    scale: float | None = None

    def __post_init__(self) -> None:
        whole = 1 if self.end is None or _is_part(self.end) else self.end
        every = 1 if self.every is None else self.every
        _check_integers({"first": self.first, "end": whole, "every": every}, least={"first": 0})
        if isinstance(self.end, int) and self.end <= self.first:
            raise ValueError(
                f"guidance from step {self.first} to before step {self.end} has no step; let it "
                "end later"
            )
        if self.then not in ("none", "reuse"):
            raise ValueError(f"then={self.then!r} is unknown. Fix: use none or reuse")
        if self.then == "reuse" and self.end is None:
            raise ValueError(
                "a difference can only be reused from a step on. Fix: say where guidance ends"
            )
        if self.then == "none" and self.every is not None:
            raise ValueError(
                f"every={self.every} refreshes a difference that is not reused. Fix: add then: "
                "reuse, or remove it"
            )
        vars(self)["weights"] = _weights(self.weights)
        if self.weights and not (self.scale is not None and self.scale > 1):
            raise ValueError(
                f"weights need the scale that the pipeline is called with, more than 1, and it is "
                f"{self.scale}. Fix: give scale"
            )

    def at(self, steps: int) -> "GuidanceInterval":
        """The interval in a pipeline call of ``steps`` steps: ``end`` is a step."""
        end = self.end
        if end is not None and _is_part(end):
            end = max(self.first + 1, _step(end, steps))
        weights = tuple((_step(begin, steps), weight) for begin, weight in self.weights)
        return replace(self, end=end, weights=weights)

    def check(self, steps: int) -> None:
        """Raises ValueError when ``steps`` denoising steps have none without guidance."""
        if self.weights:
            super().check(steps)
        elif self.first == 0 and (self.end is None or self.end > steps):
            raise ValueError(
                f"guidance from step 0 to {self.end or 'the end'} is guidance at all {steps} "
                "steps; let it begin later or end before"
            )

    @property
    def begins_late(self) -> bool:
        """True if the first step runs one branch, which nothing in the call shows."""
        return not self.at(1_000_000).fill((StepActions(),))[0].guided

    def fill(self, table: Table) -> Table:
        end = len(table) if self.end is None else int(self.end)
        rows = []
        for step, row in enumerate(table):
            weight = next((w for begin, w in reversed(self.weights) if begin <= step), self.scale)
            refreshed = self.every is not None and (step - end + 1) % self.every == 0
            difference = Action.COMPUTE
            if self.then == "reuse" and step >= end - 1:
                stores = step < end or refreshed
                difference = Action.STORE if stores else Action.REUSE
            guided = self.first <= step < end or difference is Action.STORE
            strength = 1.0
            if weight == 1:
                guided, difference = False, Action.COMPUTE
            elif self.scale is not None and weight is not None:
                strength = (weight - 1) / (self.scale - 1)
            acts = guided or difference is Action.REUSE
            rows.append(
                replace(
                    row,
                    guided=guided,
                    difference=difference,
                    strength=strength if acts else 1.0,
                )
            )
        return tuple(rows)


@dataclass(frozen=True)
class SelfAttentionInterval(Plan):
    """Self-attention is computed every ``interval`` steps after ``warm_up`` steps, and reused.

    Where a guidance branch joins in, it is computed too. Raises ValueError for values that cannot
    work.
    """

    interval: int
    warm_up: int = 0

    def __post_init__(self) -> None:
        _check_integers(vars(self), least={"warm_up": 0})

    def fill(self, table: Table) -> Table:
        return with_reused_self_attention(table, self.interval, self.warm_up)


@dataclass(frozen=True)
class Forecast(Plan):
    """At some steps the denoiser does not run: its output is forecast from the last computed ones.

    Either at ``steps``, or from step ``first`` to ``last`` (the last but one if None) at all but
    every ``every``-th step. ``order``: of the polynomial in steps: 0 repeats the last output, 1
    continues its change, 2 the change of it. After TaylorSeer (arXiv 2503.06923), AB-Cache (arXiv
    2504.10540) and Spectrum (arXiv 2603.01623), with fixed steps and weights. Raises ValueError
    for values that cannot work.
    """

    steps: tuple[int, ...] = ()
    first: int | float | None = None
    every: int = 2
    last: int | float | None = None
    order: int = 1

    def __post_init__(self) -> None:
        vars(self)["steps"] = tuple(self.steps)
        if bool(self.steps) == (self.first is not None):
            raise ValueError("forecast needs either steps or first. Fix: give one of them")
        counted = {"every": self.every, "order": self.order} | {
            name: value
            for name in ("first", "last")
            if (value := getattr(self, name)) is not None and not _is_part(value)
        }
        _check_integers(counted, least={"every": 2, "order": 0})
        for step in self.steps:
            _check_integers({"steps": step}, least={})
        if self.order > 2:
            raise ValueError(f"order={self.order} is not supported. Fix: use 0, 1 or 2")

    def at(self, steps: int) -> "Forecast":
        """The forecast in a pipeline call of ``steps`` steps, which it lists."""
        if self.steps:
            return self
        first = max(1, _step(self.first, steps))
        last = steps - 2 if self.last is None else _step(self.last, steps)
        left = (step for step in range(first, last + 1) if (step - first + 1) % self.every)
        none = (steps,)  # which never comes
        return replace(self, steps=tuple(left) or none, first=None, last=None)

    def check(self, steps: int) -> None:
        """Raises ValueError when a step to forecast is beyond ``steps`` denoising steps."""
        beyond = [step for step in self.steps if step >= steps]
        if beyond:
            raise ValueError(
                f"forecast step {beyond[0]} is beyond the {steps} steps, which count from 0. Fix: "
                "leave it out"
            )
        super().check(steps)

    def fill(self, table: Table) -> Table:
        return with_forecasts(table, frozenset(self.steps), self.order)


@dataclass(frozen=True)
class Combination(Plan):
    """Several plans of different kinds in one table; ``combined`` makes it."""

    plans: tuple[Plan, ...]

    @property
    def parts(self) -> tuple[Plan, ...]:
        return self.plans

    def at(self, steps: int) -> "Combination":
        return Combination(tuple(plan.at(steps) for plan in self.plans))

    def check(self, steps: int) -> None:
        for plan in self.plans:
            plan.check(steps)

    def fill(self, table: Table) -> Table:
        for plan in self.plans:
            table = plan.fill(table)
        return table

    def __str__(self) -> str:
        return " with ".join(map(str, self.plans))


_ORDER = (GatePlan, GuidanceInterval, SelfAttentionInterval, Forecast)


def combined(*plans: Plan | None) -> Plan | None:
    """Returns one plan of all that are given, None without any.

    Raises ValueError for a combination without meaning.
    """
    given = sorted(
        (part for plan in plans if plan is not None for part in plan.parts),
        key=lambda part: _ORDER.index(type(part)),
    )
    kinds = [type(part) for part in given]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"two plans of the kind {kind.__name__} cannot act at once")
    if GatePlan in kinds and GuidanceInterval in kinds:
        raise ValueError("a gate already ends guidance. Fix: leave GuidanceInterval out")
    if GatePlan in kinds and SelfAttentionInterval in kinds:
        raise ValueError("a gate has its own intervals. Fix: use sp_interval and fi_interval")
    return given[0] if len(given) == 1 else Combination(tuple(given)) if given else None


@dataclass(frozen=True)
class DeepCache:
    """DeepCache (arXiv 2312.00858): deep U-Net features are computed every ``interval`` calls.

    ``branch`` is the skip connection that is still computed in between, 0 the shallowest. It counts
    the calls that the denoiser gets, and so goes with every plan. Raises ValueError for values that
    cannot work.
    """

    interval: int = 3  # steps
    branch: int = 0

    def __post_init__(self) -> None:
        _check_integers(vars(self), least={"branch": 0})


def _weights(given: Any) -> tuple[tuple[int | float, float], ...]:
    """Returns pairs of a beginning and a weight, in order; raises ValueError for a wrong value."""
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, Sequence) and all(isinstance(one, Sequence) for one in given):
        pairs = [(begin, weight) for begin, weight in given]
    else:
        pairs = list(enumerate(given))
    for begin, weight in pairs:
        if not _is_part(begin):
            _check_integers({"weights": begin}, least={"weights": 0})
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 1:
            raise ValueError(
                f"weights={weight!r} is no guidance scale. Fix: use numbers of at least 1 (1 runs "
                "the caption's branch alone)"
            )
    return tuple(sorted((begin, float(weight)) for begin, weight in pairs))


def _is_part(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _step(value: Any, steps: int) -> int:
    return round(value * steps) if _is_part(value) else value


def _check_integers(settings: Mapping[str, Any], least: Mapping[str, int]) -> None:
    for name, value in settings.items():
        smallest = least.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            part = ", or a part of the steps between 0 and 1" if name in _PARTS else ""
            raise ValueError(
                f"{name}={value!r} cannot be counted in steps; use an integer >= {smallest}{part}"
            )


_PARTS = ("gate_step", "end", "weights")
