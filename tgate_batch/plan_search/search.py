"""The search: cheap plans are found on some prompts, and a few are confirmed on fresh ones.

The search uses 15% of the prompts. It begins with every plan on few prompts and halves the plans as
prompts double. Then a chain of at most six plans is fixed, and tested on all other prompts.

The promise: with probability ``confidence``, the recommended plan's mean loss over the population
that the prompts are a random sample of is within every limit. It rests on the confirmation alone,
whose prompts the search has not used: the chain's tests share the allowed error, and of several
limits the worst counts. The search may therefore use any heuristic.

Every decision is a function of the losses that were delivered. A search that is begun again with
the same losses decides the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from tgate_batch.plan_search import normal
from tgate_batch.plan_search.belief import Belief, Prior
from tgate_batch.plan_search.chain import LONGEST, accepted, choose_chain
from tgate_batch.plan_search.evidence import (
    Limit,
    count_failures_as_lost,
    standard_error,
    standard_errors_below,
)
from tgate_batch.plan_search.looks import SHARES, critical_values

FIRST = 25  # prompts on which every plan is measured
SEARCHED = 0.15  # of the prompts: the search uses them
_FEWEST_SEARCHED = 20  # prompts
_FEWEST_CONFIRMING = 20  # prompts
_FIRST_LOOK = {True: 10, False: 50}  # prompts, by yes/no: a score has to show its skewness first
_WORTH = 0.005  # of expected saving, below which nothing is confirmed
_FUTILE = 0.05  # probability of passing, below which a plan is not measured further
_TWO_SIDED = 1.96


@dataclass(frozen=True)
class Problem:
    """What is searched.

    ``savings`` [plans]: the share of the baseline's MACs that each plan saves. ``features``,
    ``origin``: as ``Prior`` has them. ``ends``: the numbers of prompts, increasing, at which a
    stage may end; the last one is all prompts.
    """

    savings: np.ndarray
    features: np.ndarray
    origin: np.ndarray
    limits: tuple[Limit, ...]
    ends: Sequence[int]
    confidence: float = 0.95

    @property
    def prompts(self) -> int:
        return self.ends[-1]

    def end_from(self, prompts: float) -> int:
        """Returns the first end with at least this many prompts, or else the last one."""
        return next((end for end in self.ends if end >= prompts), self.ends[-1])


@dataclass(frozen=True)
class Request:
    """Losses that the search needs: of each plan, those of the prompts first..last-1.

    ``last``: the baseline is measured up to this prompt. ``chain``: None in the search; in the
    confirmation the plans that are tested, which never change.
    """

    ranges: Mapping[int, tuple[int, int]]
    last: int
    chain: tuple[int, ...] | None = None


# Plan -> losses [limits, prompts]. Prompts without a figure of the baseline are left out, of every
# plan alike; NaN: the plan delivered no image.
Ask = Callable[[Request], Mapping[int, np.ndarray]]


class State(Enum):
    """What became of a plan."""

    DROPPED = "dropped"  # during the search
    NOT_CHOSEN = "not chosen"  # measured to the end of the search, and not in the chain
    NOT_CONFIRMED = "not confirmed"  # in the chain
    CONFIRMED = "confirmed"


@dataclass(frozen=True)
class PlanResult:
    """What is known of a plan. ``losses``: of each limit, its mean loss: value, low, high (95%)."""

    state: State
    searched: int  # prompts
    confirming: int  # prompts
    losses: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Outcome:
    """The answer. ``recommended`` is a plan, or None: no plan was confirmed.

    ``bounds``: of each limit, the confirmed upper bound of the recommended plan's mean loss; at
    most the limit. ``images`` are counted in prompts, the baseline's included.
    """

    recommended: int | None
    chain: tuple[int, ...]
    plans: tuple[PlanResult, ...]
    bounds: tuple[float, ...]
    searched: int  # prompts
    confirmed: int  # prompts that the last look had
    images: int


def find_plan(problem: Problem, ask: Ask) -> Outcome:
    """Searches, confirms, and returns the plan that saves most of those confirmed."""
    if not len(problem.savings):
        return Outcome(None, (), (), (), 0, 0, 0)
    search = _Search(problem, ask)
    search.run()
    confirmation = _Confirmation(problem, ask, search)
    if search.worth >= _WORTH:
        confirmation.run()
    return _outcome(problem, search, confirmation)


class _Losses:
    """The losses that were delivered, by plan: an array [limits, prompts] each."""

    def __init__(self, problem: Problem, ask: Ask, begin: int):
        self._limits, self._ask, self._begin = problem.limits, ask, begin
        self._asked: dict[int, int] = {}  # plan -> prompts, from the beginning
        self._raw: dict[int, np.ndarray] = {}
        self.last = begin

    def extend(self, plans: Sequence[int], last: int, chain: Sequence[int] | None = None) -> None:
        """Asks for these plans' losses of all prompts before ``last``."""
        ranges = {plan: (self._begin + self._asked.get(plan, 0), last) for plan in plans}
        wanted = {plan: span for plan, span in ranges.items() if span[0] < span[1]}
        fixed = None if chain is None else tuple(chain)
        for plan, new in self._ask(Request(wanted, last, fixed)).items():
            before = self._raw.get(plan)
            self._raw[plan] = new if before is None else np.concatenate([before, new], axis=1)
            self._asked[plan] = last - self._begin
        self.last = max(self.last, last)

    def prompts(self, plan: int) -> int:
        """Returns how many prompts were asked for of a plan."""
        return self._asked.get(plan, 0)

    def of(self, number: int) -> dict[int, np.ndarray]:
        """Returns plan -> losses of one limit, missing images counted as lost."""
        arrays = [x[number] for x in self._raw.values()]
        filled = count_failures_as_lost(arrays, self._limits[number])
        return dict(zip(self._raw, filled, strict=True))


class _Search:
    """The search on the first prompts."""

    def __init__(self, problem: Problem, ask: Ask):
        self._problem = problem
        self.losses = _Losses(problem, ask, 0)
        self.prior = Prior(problem.features, problem.origin)
        self.chain: list[int] = []
        self.worth = 0.0
        self.prompts = 0

    def run(self) -> None:
        problem, savings = self._problem, self._problem.savings
        until = problem.end_from(max(SEARCHED * problem.prompts, _FEWEST_SEARCHED))
        alive, kept = list(range(len(savings))), len(savings)
        while True:
            grown = problem.end_from(self.prompts + max(FIRST, self.prompts))
            self.prompts = min(grown, until)
            self.losses.extend(alive, self.prompts)
            beliefs = self._beliefs()
            left = max(problem.prompts - self.prompts, 1)
            chances = _least(
                belief.chances(limit.at_most, left)
                for belief, limit in zip(beliefs, problem.limits, strict=True)
            )
            self.chain, self.worth = choose_chain(savings, chances)
            if self.prompts >= until:
                return
            hopes = savings * _least(
                belief.hopes(limit.at_most, left)
                for belief, limit in zip(beliefs, problem.limits, strict=True)
            )
            if self.prompts >= 4 * FIRST and hopes.max() < _WORTH:
                return
            kept = max(kept // 2, LONGEST + 1)
            best = (int(plan) for plan in np.argsort(-hopes, kind="stable")[:kept])
            alive = sorted({plan for plan in best if hopes[plan] > self.worth} | {*self.chain})

    def _beliefs(self) -> list[Belief]:
        return [self.prior.given(self.losses.of(n)) for n in range(len(self._problem.limits))]


def _least(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.min(list(arrays), axis=0)


class _Confirmation:
    """The tests of the chain on the prompts that the search has not used."""

    def __init__(self, problem: Problem, ask: Ask, search: _Search):
        self._problem, self._chain = problem, search.chain
        self._begin = search.prompts
        self.losses = _Losses(problem, ask, search.prompts)
        self._least = max(_FIRST_LOOK[limit.yes_no] for limit in problem.limits)
        self._looks = self._planned()
        self._evidence: dict[int, list[float]] = {plan: [] for plan in self._chain}
        self.levels: dict[int, float] = {}  # of the accepted plans

    @property
    def prompts(self) -> int:
        return self.losses.last - self._begin

    @property
    def shares(self) -> list[float]:
        """The share of all confirming prompts at each look."""
        total = self._problem.prompts - self._begin
        return [look / total for look in self._looks]

    def run(self) -> None:
        hopeless: set[int] = set()
        savings = self._problem.savings
        for look, share in zip(self._looks, self.shares, strict=True):
            most = max((savings[plan] for plan in self.levels), default=0.0)
            tested = [p for p in self._chain if p not in hopeless and savings[p] > most]
            if not tested:
                return
            self.losses.extend(tested, self._begin + look, self._chain)
            evidence = self._measured()
            for plan in tested:
                self._evidence[plan].append(evidence[plan])
                if share < 1 and _chance_to_pass(evidence[plan], share) < _FUTILE:
                    hopeless.add(plan)
            self.levels = accepted(self._chain, 1 - self._problem.confidence, self._passes)

    def bounds(self, plan: int) -> tuple[float, ...]:
        """Returns the upper bound of an accepted plan's mean loss, of each limit."""
        look = len(self._evidence[plan]) - 1
        needed = critical_values(self.levels[plan], self.shares)[look]
        bounds = []
        for number, limit in enumerate(self._problem.limits):
            losses = self.losses.of(number)[plan]
            bound = float(losses.mean()) + needed * standard_error(losses, limit)
            bounds.append(min(bound, limit.at_most))
        return tuple(bounds)

    def _planned(self) -> list[int]:
        """The numbers of confirming prompts at which there is a look; none if too few are left."""
        problem = self._problem
        total = problem.prompts - self._begin
        if total < _FEWEST_CONFIRMING:
            return []
        ends = {problem.end_from(self._begin + share * total) - self._begin for share in SHARES}
        return sorted(end for end in ends if end >= self._least)

    def _measured(self) -> dict[int, float]:
        """By plan: standard errors below the limit, of the limit that is nearest to break."""
        by_limit = [
            {
                plan: standard_errors_below(x, limit) if len(x) >= self._least else -np.inf
                for plan, x in self.losses.of(number).items()
            }
            for number, limit in enumerate(self._problem.limits)
        ]
        return {plan: min(one[plan] for one in by_limit) for plan in by_limit[0]}

    def _passes(self, plan: int, level: float) -> bool:
        needed = critical_values(level, self.shares)
        return any(z >= least for z, least in zip(self._evidence[plan], needed, strict=False))


def _chance_to_pass(evidence: float, share: float) -> float:
    """The probability that a plan passes the last look, from its evidence at a share of it."""
    needed = 1.7
    return float(normal.below((evidence / share**0.5 - needed) / ((1 - share) / share) ** 0.5))


def _outcome(problem: Problem, search: _Search, confirmation: _Confirmation) -> Outcome:
    levels, savings = confirmation.levels, problem.savings
    recommended = max(levels, key=lambda plan: savings[plan], default=None)
    beliefs = _final_beliefs(problem, search, confirmation)
    plans = range(len(savings))
    return Outcome(
        recommended,
        tuple(search.chain),
        tuple(
            PlanResult(
                _state(plan, search, confirmation),
                search.losses.prompts(plan),
                confirmation.losses.prompts(plan),
                tuple(_interval(belief, plan) for belief in beliefs),
            )
            for plan in plans
        ),
        () if recommended is None else confirmation.bounds(recommended),
        search.prompts,
        confirmation.prompts,
        confirmation.losses.last
        + sum(search.losses.prompts(p) + confirmation.losses.prompts(p) for p in plans),
    )


def _final_beliefs(problem: Problem, search: _Search, confirmation: _Confirmation) -> list[Belief]:
    """What is believed from all prompts: the mean at which a test stopped is too good."""
    beliefs = []
    for number in range(len(problem.limits)):
        losses, more = search.losses.of(number), confirmation.losses.of(number)
        none = np.empty(0)
        both = {plan: np.concatenate([x, more.get(plan, none)]) for plan, x in losses.items()}
        beliefs.append(search.prior.given(both))
    return beliefs


def _interval(belief: Belief, plan: int) -> tuple[float, float, float]:
    mean, half = float(belief.mean[plan]), _TWO_SIDED * float(belief.sd[plan])
    return mean, mean - half, mean + half


def _state(plan: int, search: _Search, confirmation: _Confirmation) -> State:
    if plan in confirmation.levels:
        return State.CONFIRMED
    if plan in search.chain and confirmation.losses.prompts(plan):
        return State.NOT_CONFIRMED
    if search.losses.prompts(plan) == search.prompts:
        return State.NOT_CHOSEN
    return State.DROPPED
