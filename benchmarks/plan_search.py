"""Whether the plan search keeps what it promises: simulated searches whose truth is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from benchmarks import plan_populations as populations
from benchmarks.plan_populations import Population
from tgate_batch import console
from tgate_batch.plan_search.evidence import Limit, standard_errors_below
from tgate_batch.plan_search.normal import below, quantile
from tgate_batch.plan_search.search import Outcome, Problem, Request, find_plan

RUNS = 500  # searches of a cell
SEED = 11
_POINTS = Limit("prompt_accuracy", 0.02, yes_no=True)
_SCORE = Limit("clip_score", 0.5, yes_no=False)
_LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """One kind of search: a population, its limits, and the number of prompts."""

    population: Callable[[], Population]
    limits: tuple[Limit, ...]
    prompts: int


CELLS = {
    "card, 1,000 prompts": Cell(populations.card, (_POINTS,), 1000),
    "card, 2,500 prompts": Cell(populations.card, (_POINTS,), 2500),
    "exact boundary": Cell(populations.boundary, (_POINTS,), 1500),
    "0.6 points beyond": Cell(lambda: populations.boundary(0.006), (_POINTS,), 1500),
    "all harmful": Cell(populations.harmful, (_POINTS,), 1500),
    "nothing harmful": Cell(populations.harmless, (_POINTS,), 1500),
    "no order": Cell(populations.without_order, (_POINTS,), 1500),
    "clustered, 4 images a prompt": Cell(
        populations.clustered, (Limit("prompt_accuracy", 0.02, yes_no=False),), 400
    ),
    "two limits": Cell(
        lambda: populations.with_score(populations.card()),
        (_POINTS, Limit("clip_score", 0.03, yes_no=False)),
        1500,
    ),
    "skewed score, exact boundary": Cell(populations.skewed, (_SCORE,), 300),
    "limit 0, nothing harmful": Cell(
        populations.harmless, (Limit("prompt_accuracy", 0.0, yes_no=True),), 1500
    ),
    "limit 0, exact boundary": Cell(
        lambda: populations.boundary(0.0001, 0.0),
        (Limit("prompt_accuracy", 0.0, yes_no=True),),
        1500,
    ),
    "60 prompts": Cell(populations.card, (_POINTS,), 60),
    "60 prompts, limit 10 points": Cell(
        populations.card, (Limit("prompt_accuracy", 0.1, yes_no=True),), 60
    ),
}


def bench_plan_search(
    runs: Annotated[int, "searches per cell"] = RUNS,
    cells: Annotated[tuple[str, ...], "names of cells; default: all"] = (),
) -> dict[str, Any]:
    """Simulated plan searches: promise kept, saving, images, estimate and bound, by population."""
    chosen = {name: cell for name, cell in CELLS.items() if not cells or name in cells}
    results = {}
    for name, cell in chosen.items():
        results[name] = simulate(cell, runs)
        console.info(f"bench plan-search: {name}: {results[name]}", event="progress")
    short = [name for name, found in results.items() if not found["holds"]]
    return {"runs": runs, "seed": SEED, "cells": results, "short": short}


def simulate(cell: Cell, runs: int, seed: int = SEED) -> dict[str, Any]:
    """Searches ``runs`` times on prompts sampled from the population, with replacement."""
    population = cell.population()
    truth = population.truth
    limits = np.array([limit.at_most for limit in cell.limits])
    keeps = np.all(truth <= limits[:, None] + 1e-12, axis=0)
    rng = np.random.default_rng(seed)
    rows, rivals = [], []
    for _ in range(runs):
        chosen = rng.integers(population.losses.shape[2], size=cell.prompts)
        losses = population.losses[:, :, chosen].mean(axis=3)
        outcome = search(population, cell, losses)
        rows.append(_row(outcome, population, truth, keeps))
        rivals.append(_rivals(population, cell, losses, truth, keeps))
    return _summary(cell, population, np.array(rows), np.array(rivals))


def search(population: Population, cell: Cell, losses: np.ndarray) -> Outcome:
    """One search on these losses [limits, plans, prompts]."""

    def ask(request: Request) -> Mapping[int, np.ndarray]:
        return {
            plan: losses[:, plan, first:last].astype(float)
            for plan, (first, last) in request.ranges.items()
        }

    ends = range(1, cell.prompts + 1)
    problem = Problem(population.savings, population.features, population.origin, cell.limits, ends)
    return find_plan(problem, ask)


def _row(
    outcome: Outcome, population: Population, truth: np.ndarray, keeps: np.ndarray
) -> tuple[float, ...]:
    """(kept, recommended, saving, images, error of the estimate, bound covers the truth)."""
    plan = outcome.recommended
    if plan is None:
        return (1, 0, 0, outcome.images, np.nan, np.nan)
    estimate = outcome.plans[plan].losses[0][0]
    covered = all(bound >= mean for bound, mean in zip(outcome.bounds, truth[:, plan], strict=True))
    kept, saving = keeps[plan], population.savings[plan]
    return (kept, 1, saving, outcome.images, truth[0, plan] - estimate, covered)


def _rivals(
    population: Population,
    cell: Cell,
    losses: np.ndarray,
    truth: np.ndarray,
    keeps: np.ndarray,
) -> tuple[float, ...]:
    """(kept by the mean, saving by the mean, kept by a test of each plan, the oracle's saving).

    The first two choose the cheapest plan whose mean on all prompts is within the limits; the third
    the cheapest that passes a test at 5%. The oracle knows every truth, and has to prove its plan.
    """
    limits = [limit.at_most for limit in cell.limits]
    within = (losses.mean(axis=2) <= np.array(limits)[:, None]).all(axis=0)
    evidence = np.array(
        [
            min(
                standard_errors_below(x[plan].astype(float), limit)
                for x, limit in zip(losses, cell.limits, strict=True)
            )
            for plan in range(len(population.savings))
        ]
    )
    passes = evidence >= quantile(1 - _LEVEL)
    by_mean, by_test = _cheapest(population, within), _cheapest(population, passes)
    oracle = _oracle(population, cell, truth)
    return (
        by_mean is None or keeps[by_mean],
        0.0 if by_mean is None else population.savings[by_mean],
        by_test is None or keeps[by_test],
        population.savings[oracle] if passes[oracle] else 0.0,
    )


def _cheapest(population: Population, allowed: np.ndarray) -> int | None:
    plans = np.flatnonzero(allowed)
    return int(plans[population.savings[plans].argmax()]) if len(plans) else None


def _oracle(population: Population, cell: Cell, truth: np.ndarray) -> int:
    """The plan whose expected saving is largest if it alone is tested on all prompts."""
    power = np.ones(len(population.savings))
    for number, limit in enumerate(cell.limits):
        variance = population.losses[number].mean(axis=2).var(axis=1)
        errors = np.sqrt(variance / cell.prompts)
        power = power * below((limit.at_most - truth[number]) / errors - quantile(1 - _LEVEL))
    return int((population.savings * power).argmax())


def _summary(
    cell: Cell, population: Population, rows: np.ndarray, rivals: np.ndarray
) -> dict[str, Any]:
    runs = len(rows)
    found = rows[rows[:, 1] == 1]
    kept, least = float(rows[:, 0].mean()), 0.95 - 2 * float(np.sqrt(0.95 * 0.05 / runs))
    exhaustive = (len(population.savings) + 1) * cell.prompts
    return {
        "kept": round(kept, 4),
        "holds": kept >= least,
        "recommends": round(float(rows[:, 1].mean()), 4),
        "saving": round(float(rows[:, 2].mean()), 4),
        "oracle_saving": round(float(rivals[:, 3].mean()), 4),
        "images_of_exhaustive": round(float(rows[:, 3].mean()) / exhaustive, 4),
        "estimate_error": round(float(found[:, 4].mean()), 5) if len(found) else None,
        "bound_covers": round(float(found[:, 5].mean()), 4) if len(found) else None,
        "kept_by_mean": round(float(rivals[:, 0].mean()), 4),
        "saving_by_mean": round(float(rivals[:, 1].mean()), 4),
        "kept_by_tests": round(float(rivals[:, 2].mean()), 4),
    }
