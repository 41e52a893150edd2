"""The plans that are searched by default: a grid over every family of plans, and combinations.

A family is one entry of ``FAMILIES``. It gives its plans for a number of steps, and the few of them
that are combined with the other families' plans.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tgate_batch.config import Arm
from tgate_batch.gate.plan import Action

MOST = 40  # plans that are searched by default

Settings = dict[str, Any]  # of an arm
_PARTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  # of the steps
_COMBINED = (0.4, 0.5)
_REUSED = (0.2, 0.4)
_FORECAST = (0.2, 0.4, 0.6)
_WARM_UP = 2


@dataclass(frozen=True)
class PlanFamily:
    """A kind of plan.

    ``alone``: the family's plans for a number of steps, as settings of an arm; ``combined``: those
    that join with other families' plans. ``features``: what the search compares its plans by,
    beside the features that all plans have; about 0 to 1, and those of the baseline for an arm of
    another family.
    """

    alone: Callable[[int], list[Settings]]
    combined: Callable[[int], list[Settings]]
    features: Callable[[Arm], tuple[float, ...]] = lambda arm: ()


def _steps(steps: int) -> list[Settings]:
    return [{"steps": _at(part, steps)} for part in (0.4, 0.5, 0.6, 0.7, 0.8)]


def _fewer_steps(steps: int) -> list[Settings]:
    return [{"steps": _at(part, steps)} for part in (0.4, 0.5, 0.6, 0.8)]


def _gates(steps: int) -> list[Settings]:
    gates = _few_gates(steps, _PARTS)
    return gates + [gate | {"sp_interval": 3, "warm_up": _WARM_UP} for gate in gates]


def _few_gates(steps: int, parts: Sequence[float] = _COMBINED) -> list[Settings]:
    return [{"gate_step": _at(part, steps)} for part in parts]


def _ended_guidance(steps: int, parts: Sequence[float] = _PARTS) -> list[Settings]:
    return [{"guidance_until": _at(part, steps)} for part in parts]


def _reused_guidance(steps: int, parts: Sequence[float] = _REUSED) -> list[Settings]:
    return [
        {"guidance": {"until": _at(part, steps), "then": "reuse", "every": every}}
        for part in parts
        for every in (2, 3, 5)
    ]


def _forecasts(steps: int, parts: Sequence[float] = _FORECAST) -> list[Settings]:
    return [
        {"forecast": {"first": max(2, _at(part, steps)), "every": every}}
        for part in parts
        for every in (3, 2)
    ]


def _deepcache(steps: int) -> list[Settings]:
    return [{"deepcache": {"interval": interval, "branch": 0}} for interval in (2, 3, 5)]


def _at(part: float, steps: int) -> int:
    return max(1, round(part * steps))


FAMILIES: dict[str, PlanFamily] = {
    "steps": PlanFamily(_steps, _fewer_steps),
    "gate": PlanFamily(_gates, _few_gates),
    "guidance": PlanFamily(_ended_guidance, lambda steps: _ended_guidance(steps, _COMBINED)),
    "reuse": PlanFamily(_reused_guidance, lambda steps: _reused_guidance(steps, _REUSED[:1])),
    "forecast": PlanFamily(_forecasts, lambda steps: _forecasts(steps, _FORECAST[:1])),
    "deepcache": PlanFamily(
        _deepcache,
        lambda steps: _deepcache(steps)[1:2],
        lambda arm: (1.0 if arm.cache is None else 1 / arm.cache.interval,),
    ),
}


def candidates(steps: int, families: Iterable[str]) -> list[Arm]:
    """Returns the plans of these families for a number of steps, and their combinations in pairs.

    Settings that no arm can have together are left out. ``steps``: of the baseline.
    """
    chosen = [FAMILIES[name] for name in FAMILIES if name in set(families)]
    settings = [one for family in chosen for one in family.alone(steps)]
    for first, second in combinations(chosen, 2):
        for one in first.combined(steps):
            for other in second.combined(one.get("steps", steps)):
                settings.append(one | other)
    arms = (_arm(one, steps) for one in settings)
    return list({str(arm.settings): arm for arm in arms if arm is not None}.values())


def _arm(settings: Settings, steps: int) -> Arm | None:
    """The arm of these settings; None if they cannot be combined or change nothing."""
    try:
        arm = Arm(**settings)
        if arm.combined_plan is not None:
            arm.combined_plan.check(arm.steps or steps)
    except ValueError:
        return None
    return None if arm.steps == steps else arm


def thin(arms: Sequence[Arm], features: np.ndarray, most: int = MOST) -> list[int]:
    """Returns the positions of at most ``most`` arms that represent the others, in order.

    Of the two arms that are nearest to each other in their ``features`` [arms, f], the later one is
    removed, again and again.
    """
    left = list(range(len(arms)))
    while len(left) > most:
        points = features[left]
        distances = np.square(points[:, None] - points[None]).sum(axis=-1)
        distances[np.tril_indices(len(left))] = np.inf
        left.pop(int(distances.argmin() % len(left)))
    return left


def features_of(arm: Arm, steps: int) -> np.ndarray:
    """Returns what plans are compared by, about 0 to 1; ``steps``: of the baseline."""
    own_steps = arm.steps or steps
    schedule = arm.combined_plan
    actions = () if schedule is None else schedule.at(own_steps).schedule(own_steps)
    computed = {
        "guided": [action.guided for action in actions],
        "cross": [action.cross is not Action.REUSE for action in actions],
        "self": [action.self_ is not Action.REUSE for action in actions],
        "difference": [action.difference is not Action.REUSE for action in actions],
        "output": [not action.is_forecast for action in actions],
    }
    share = {name: float(np.mean(each)) if each else 1.0 for name, each in computed.items()}
    common = (
        share["guided"],
        2 * arm.guidance_from / own_steps,
        0.5 * share["cross"],
        0.5 * share["self"],
        own_steps / steps,
        share["difference"],
        share["output"],
    )
    own = (number for family in FAMILIES.values() for number in family.features(arm))
    return np.array([*common, *own])


_SHORT = {
    "steps": "steps",
    "gate_step": "gate",
    "sp_interval": "sp",
    "fi_interval": "fi",
    "warm_up": "warmup",
    "guidance_from": "guidance-from",
    "guidance_until": "guidance",
    "guidance.until": "guidance",
    "guidance.then": "then",
    "guidance.every": "every",
    "forecast.first": "forecast",
    "forecast.every": "every",
    "deepcache.interval": "deepcache",
    "deepcache.branch": "branch",
}
_PHRASES = {
    "steps": "{} steps",
    "gate_step": "gate at step {}",
    "sp_interval": "self-attention every {} steps before the gate",
    "fi_interval": "self-attention every {} steps after the gate",
    "warm_up": "{} warm-up steps",
    "guidance_from": "guidance from step {}",
    "guidance_until": "guidance until step {}",
    "guidance.until": "guidance until step {}",
    "guidance.then": "then its difference reused",
    "guidance.every": "refreshed every {} steps",
    "forecast.first": "forecasts from step {}",
    "forecast.every": "computed every {} steps",
    "deepcache.interval": "DeepCache every {} steps",
    "deepcache.branch": "branch {}",
}


def name_of(arm: Arm) -> str:
    """Returns the arm's name as a folder has it, e.g. ``steps-15-guidance-8``."""
    words = [f"{_SHORT.get(key, key)}-{value}" for key, value in _set(arm).items()]
    return "-".join(words).replace("_", "-").replace(" ", "")[:64]


def describe(arm: Arm) -> str:
    """Returns what the arm does, e.g. ``15 steps, guidance until step 8``."""
    return ", ".join(_phrase(key, value) for key, value in _set(arm).items())


def _phrase(key: str, value: Any) -> str:
    words = _PHRASES.get(key, key + " {}")
    if isinstance(value, float) and value < 1:  # a part of the steps
        words = words.replace("step {}", "{} of the steps")
    return words.format(value)


def _set(arm: Arm) -> Mapping[str, Any]:
    """The settings of an arm that are not a baseline's, in the order of ``_SHORT``."""
    plain = Arm().settings | {"deepcache.branch": 0}
    different = {key: value for key, value in arm.settings.items() if value != plain.get(key)}
    different = {key: value for key, value in different.items() if value is not None}
    order = list(_SHORT)
    return dict(
        sorted(different.items(), key=lambda item: order.index(item[0]) if item[0] in order else 99)
    )
