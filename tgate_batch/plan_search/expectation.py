"""What a search costs before it runs, and what its prompts can prove."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from tgate_batch.plan_search.chain import LONGEST
from tgate_batch.plan_search.evidence import Limit
from tgate_batch.plan_search.search import (
    FIRST,
    SEARCHED,
    Problem,
    Request,
    find_plan,
)

_SEARCHES = 8
_CHANGED = 0.08  # of the images change a yes/no answer, as on the embedded model
_KEPT = 0.5  # the saving at which made-up plans reach their limit
_NEEDED = 1.75  # standard errors that a test needs, about


@dataclass(frozen=True)
class Expectation:
    """A search's cost, in prompts: ``images`` and ``work`` (in baseline images) on average, and
    the largest number of images."""

    images: float
    work: float
    most: int


def expected(problem: Problem) -> Expectation:
    """Simulates searches in which a plan loses more the more it saves."""
    images, work = [], []
    for number in range(_SEARCHES):
        asked: dict[int, int] = {}
        rng = np.random.default_rng(number)

        def ask(request: Request) -> Mapping[int, np.ndarray]:
            for plan, (first, last) in request.ranges.items():
                asked[plan] = asked.get(plan, 0) + last - first  # noqa: B023
            return {
                plan: _made_up(problem, plan, last - first, rng)  # noqa: B023
                for plan, (first, last) in request.ranges.items()
            }

        outcome = find_plan(problem, ask)
        images.append(outcome.images)
        saved = sum(problem.savings[plan] * count for plan, count in asked.items())
        work.append(outcome.images - saved)
    return Expectation(float(np.mean(images)), float(np.mean(work)), most_images(problem))


def _made_up(problem: Problem, plan: int, prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Losses [limits, prompts] whose mean is the limit for a plan that saves ``_KEPT``."""
    share = (problem.savings[plan] / _KEPT) ** 3
    rows = []
    for limit in problem.limits:
        mean = share * limit.at_most
        if limit.yes_no:
            changed = max(_CHANGED, mean)
            answers = ((changed + mean) / 2, (changed - mean) / 2, 1 - changed)
            rows.append(rng.choice([1.0, -1.0, 0.0], prompts, p=answers))
        else:
            rows.append(rng.normal(mean, 10 * limit.at_most + 1e-9, prompts))
    return np.array(rows)


def most_images(problem: Problem) -> int:
    """Returns the largest number of prompts that all plans and the baseline can need together."""
    kept, done = len(problem.savings), 0
    until = problem.end_from(max(SEARCHED * problem.prompts, 20))
    images = problem.prompts + LONGEST * problem.prompts  # the baseline, and the chain
    while done < until:
        end = min(problem.end_from(done + max(FIRST, done)), until)
        images += kept * (end - done) + LONGEST * done  # a plan that was dropped may return
        kept, done = max(kept // 2, LONGEST + 1), end
    return min(images, (len(problem.savings) + 1) * problem.prompts)


def smallest_provable(problem: Problem, yes_no: bool) -> tuple[float, float]:
    """Returns the smallest limit that the confirmation can prove of a plan that loses nothing.

    The first is for a plan that changes nothing, the second for one that changes some answers. For
    a score, both are in standard deviations of a prompt's loss.
    """
    left = problem.prompts - problem.end_from(max(SEARCHED * problem.prompts, 20))
    if left <= 0:
        return float("inf"), float("inf")
    spread = np.sqrt(_CHANGED) if yes_no else 1.0
    noisy = float(_NEEDED * spread / np.sqrt(left))
    none = _NEEDED**2 / (left + _NEEDED**2)
    return (min(none, noisy) if yes_no else noisy), noisy


def prompts_for(limit: Limit) -> int | None:
    """Returns how many prompts confirm a harmless plan at a yes/no limit; None if no number does.

    The plan changes as many answers as ``smallest_provable`` has it.
    """
    if not limit.yes_no or limit.at_most <= 0:
        return None
    return ceil((_NEEDED / limit.at_most) ** 2 * _CHANGED / (1 - SEARCHED))
