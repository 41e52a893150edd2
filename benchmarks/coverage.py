"""Whether intervals hold what they say: simulated runs, whose truth is known, as a report has them.

Every run draws pictures' features, figures or times, sums them by group and asks the functions of a
report for intervals. A cell is one kind of run, ``RUNS`` times. The reference set is one and the
same in all runs of a cell: an interval leaves the reference's own noise out.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
from scipy.special import ndtr, ndtri

from tgate_batch import console
from tgate_batch.config import Thresholds
from tgate_batch.metrics.frechet import FrechetRoot, Statistics
from tgate_batch.metrics.jackknife import (
    GROUPS,
    LEAST_PROMPTS,
    Estimate,
    estimate,
    groups,
    paired_shares,
    prompts_needed,
    ratios,
)
from tgate_batch.metrics.kid import kernel_sums, mean_of_pairs
from tgate_batch.metrics.moments import Moments, frechet_values
from tgate_batch.report import thresholds
from tgate_batch.score.extractor_facts import enough_images

RUNS = 300  # a cell
NIGHTS = 1000  # a threshold
SEED = 0

_LEAST = {"distance": 0.90, "other": 0.93}  # covered, less two standard errors of the simulation
_WRONG_SIGN = 0.025  # of changes whose interval excludes 0, and two standard errors
_PASSED = {"harm": 0.06, "no harm": 0.85}  # at most, and at least; each with two standard errors

_AGAIN = 4  # times as many runs of a cell that fell short

_WITHIN = 0.5  # correlation of pictures of one prompt
_BIG = 400_000  # pictures that stand for infinitely many, where there is no formula
_BATCH = 8
_SPREAD_OF_TIMES = 0.2  # of the logarithm of a batch's seconds


Task = Callable[..., dict[str, dict[str, Any]]]  # runs, which draw of them, and the one cell


def bench_coverage(
    runs: Annotated[int, "per cell"] = RUNS, nights: Annotated[int, "per threshold"] = NIGHTS
) -> dict[str, Any]:
    """Every cell with the share of runs it covers, and what falls short; said as it goes.

    Of hundreds of cells at their nominal level some fall short by chance. Such a cell is drawn
    anew, more often, and that counts; its first result stands beside it.
    """
    populations = [Population(d, relu) for d, relu in product((64, 16), (False, True))]
    worlds = [
        World(population, each, pictures)
        for population, each, pictures in product(populations, (20, 5, 3, 0.8), (1, 8))
    ]
    cells: dict[str, dict[str, Any]] = {}
    console.info(f"simulating the truth of {len(populations)} populations ...", event="phase")
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    fresh = multiprocessing.get_context("spawn")  # libraries read the variables at their start
    with patch.dict(os.environ, dict.fromkeys(threads, "1")), ProcessPoolExecutor(2, fresh) as pool:
        truths = [pool.submit(truth, population) for population in populations]
        tasks: list[tuple[int, Task]] = [
            *((runs, task) for task in (means, shares, times)),
            *((nights, task) for task in (nights_of_means, nights_of_kid, nights_of_times)),
        ]
        known = dict(zip(populations, truths, strict=True))
        tasks += [
            (runs, partial(set_figures, world, known[world.population].result()))
            for world in worlds
        ]
        started = [(count, task, pool.submit(task, count)) for count, task in tasks]
        again = []
        console.info(f"simulating {len(tasks)} kinds of runs ...", event="phase")
        for count, task, waiting in started:
            for name, found in waiting.result().items():
                cells[name] = found
                console.info(f"{name}: {_line(found)}")
                if not found["holds"]:
                    again.append((name, pool.submit(task, _AGAIN * count, 1, name)))
        for name, waiting in again:
            cells[name] = {**waiting.result()[name], "first": cells[name]}
            console.info(f"again, {name}: {_line(cells[name])}")
    short = [name for name, found in cells.items() if not found["holds"]]
    lowest = {
        kind: min(
            (found["covers"] for found in cells.values() if found.get("kind") == kind), default=None
        )
        for kind in _LEAST
    }
    return {
        "runs": runs,
        "nights": nights,
        "least_covered": lowest,
        "cells": cells,
        "short": short,
    }


def _line(found: dict[str, Any]) -> str:
    facts = ", ".join(
        f"{key} {value}" for key, value in found.items() if key not in ("holds", "kind")
    )
    return facts if found["holds"] else f"SHORT {facts}"


@dataclass
class Cell:
    """What the intervals of one kind of run came to."""

    truth: float
    kind: str = "other"
    change: bool = False
    found: list[Estimate] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        low, high = (np.array([getattr(e, end) for e in self.found]) for end in ("low", "high"))
        covered = float(np.mean((low <= self.truth) & (self.truth <= high)))
        least = _LEAST[self.kind]
        holds = covered >= least - 2 * _error(least, len(self.found))
        shown: dict[str, Any] = {
            "covers": round(covered, 4),
            "width": _digits(np.median(high - low)),
            "truth": _digits(self.truth),
        }
        if self.change:
            wrong = float(np.mean((low > 0) & (self.truth < 0) | (high < 0) & (self.truth > 0)))
            shown["wrong_sign"] = round(wrong, 4)
            holds &= wrong <= _WRONG_SIGN + 2 * _error(_WRONG_SIGN, len(self.found))
        return shown | {"kind": self.kind, "holds": bool(holds)}


def _error(share: float, runs: int) -> float:
    return float(np.sqrt(share * (1 - share) / runs))


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _latent(rng: np.random.Generator, prompts: int, pictures: int, width: int = 1) -> np.ndarray:
    """Standard normal [prompts * pictures, width]; pictures of a prompt correlate."""
    if pictures == 1:
        return rng.standard_normal((prompts, width), np.float32)
    shared = np.repeat(rng.standard_normal((prompts, width), np.float32), pictures, axis=0)
    own = rng.standard_normal((prompts * pictures, width), np.float32)
    return np.float32(np.sqrt(_WITHIN)) * shared + np.float32(np.sqrt(1 - _WITHIN)) * own


def _beside(latent: np.ndarray, other: np.ndarray, correlation: float) -> np.ndarray:
    """An arm's latents that correlate with the baseline's."""
    if correlation == 0:
        return other
    return np.float32(correlation) * latent + np.float32(np.sqrt(1 - correlation**2)) * other


# --- figures of all pictures against a reference -------------------------------------------------

CHANGES = ("none", "small", "tail")


@dataclass(frozen=True)
class Population:
    """Features [n, dimensions]: normal with a power-law spectrum, or a ReLU layer of those."""

    dimensions: int
    relu: bool

    @property
    def name(self) -> str:
        return f"{'ReLU' if self.relu else 'Gaussian'} {self.dimensions}-d"

    def spread_and_mean(self, change: str) -> tuple[np.ndarray, np.ndarray]:
        """Of the latents; ``tail`` takes 40% of the variance of the smaller half of directions.

        ``away`` goes further from the reference, for thresholds.
        """
        variances, mean = 1 / np.arange(1, self.dimensions + 1), np.zeros(self.dimensions)
        if change == "small":
            variances, mean = variances * 1.04, mean + 0.02
        elif change == "tail":
            variances[self.dimensions // 2 :] *= 0.6
        elif change == "away":
            variances, mean = variances * 0.99, mean - 0.01
        elif change == "reference":
            variances, mean = variances * 1.2, mean + 0.1
        return np.sqrt(variances).astype(np.float32), mean.astype(np.float32)

    def features(self, latent: np.ndarray, change: str) -> np.ndarray:
        spread, mean = self.spread_and_mean(change)
        rows = latent * spread + mean
        if not self.relu:
            return rows
        rng = np.random.default_rng(SEED)
        mix, _ = np.linalg.qr(rng.standard_normal((self.dimensions, self.dimensions)))
        return np.maximum(rows @ mix.astype(np.float32) + np.float32(0.1), 0)

    def reference(self) -> np.ndarray:
        rng = np.random.default_rng([SEED, self.dimensions])
        return self.features(_latent(rng, 8 * self.dimensions, 1, self.dimensions), "reference")


@dataclass(frozen=True)
class World:
    """One kind of run: so many pictures a dimension and a prompt."""

    population: Population
    pictures_a_dimension: float
    pictures: int  # a prompt

    @property
    def prompts(self) -> int:
        return round(self.pictures_a_dimension * self.population.dimensions / self.pictures)

    @property
    def name(self) -> str:
        return (
            f"{self.population.name}, {self.pictures_a_dimension} pictures a dimension, "
            f"{self.pictures} a prompt"
        )


def truth(population: Population) -> dict[str, tuple[float, float]]:
    """Change -> Frechet distance and squared MMD of infinitely many pictures to the reference."""
    reference = population.reference()
    root, theirs = FrechetRoot(Statistics.of(reference)), _Products.of([reference])
    within = mean_of_pairs(reference)
    found = {}
    for change in (*CHANGES, "away"):
        if population.relu:
            rng = np.random.default_rng([SEED, 1])  # the same latents for every change
            size = population.dimensions
            batches = (
                population.features(_latent(rng, 4000, 1, size), change)
                for _ in range(_BIG // 4000)
            )
            own = _Products.of(batches)
        else:
            spread, mean = population.spread_and_mean(change)
            own = _Products.normal(mean.astype(np.float64), np.diag(spread.astype(np.float64) ** 2))
        covariance = own.second - np.outer(own.first, own.first)
        distance = root.distance(Statistics(None, own.first, covariance))
        found[change] = (distance, own.own_pairs() - 2 * own.kernel(theirs) + within)
    return found


@dataclass(frozen=True)
class _Products:
    """Means of ``x``, ``x x'`` and ``x x x``, and of the kernel of a row with itself."""

    first: np.ndarray
    second: np.ndarray
    third: np.ndarray
    itself: float
    count: float

    @classmethod
    def of(cls, batches: Any) -> "_Products":
        count, itself = 0, 0.0
        first = second = third = np.zeros(())
        for rows in batches:
            size = rows.shape[1]
            pairs = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
            first = first + rows.sum(axis=0, dtype=np.float64)
            second = second + (rows.T @ rows).astype(np.float64)
            third = third + (pairs.T @ rows).astype(np.float64)
            itself += ((np.square(rows, dtype=np.float64).sum(axis=1) / size + 1) ** 3).sum()
            count += len(rows)
        return cls(first / count, second / count, third / count, itself / count, count)

    @classmethod
    def normal(cls, mean: np.ndarray, covariance: np.ndarray) -> "_Products":
        """By formula (Isserlis 1918)."""
        apart = mean[:, None, None] * covariance
        third = apart + apart.transpose(1, 0, 2) + apart.transpose(1, 2, 0)
        third = third + mean[:, None, None] * mean[:, None] * mean
        second = covariance + np.outer(mean, mean)
        return cls(mean, second, third.reshape(-1, len(mean)), 0.0, np.inf)

    def kernel(self, other: "_Products") -> float:
        """The mean of ``(x.y / d + 1)^3`` over independent x of this and y of the other."""
        size = len(self.first)
        return float(
            1
            + 3 * (self.first @ other.first) / size
            + 3 * (self.second * other.second).sum() / size**2
            + (self.third * other.third).sum() / size**3
        )

    def own_pairs(self) -> float:
        """The kernel's mean over pairs of different rows."""
        if np.isinf(self.count):
            return self.kernel(self)
        return (self.kernel(self) * self.count - self.itself) / (self.count - 1)


def set_figures(
    world: World,
    truths: dict[str, tuple[float, float]],
    runs: int,
    draw: int = 0,
    only: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Frechet and kernel distances, corrected, and their changes against the baseline."""
    reference = world.population.reference()
    root, within = FrechetRoot(Statistics.of(reference)), mean_of_pairs(reference)
    size, each = world.population.dimensions, world.pictures
    places = groups(np.arange(world.prompts)).repeat(each)
    prompts = np.arange(world.prompts).repeat(each)

    def frechet(features: np.ndarray) -> np.ndarray:
        moments = Moments(size)
        moments.add(features, places)
        return frechet_values(moments, root)

    def kernel(features: np.ndarray) -> np.ndarray:
        found = kernel_sums(features, places, prompts, reference, within=within).values()
        assert found is not None
        return found

    figures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "Frechet distance": frechet,
        "KID": kernel,
    }
    results: dict[str, dict[str, Any]] = {}
    arms = list(product(("small", "tail"), (0.0, 0.95)))
    for number, (name, figure) in enumerate(figures.items()):
        pictures = world.prompts * each
        few = name == "Frechet distance" and not enough_images(pictures, size)
        if few or world.prompts < LEAST_PROMPTS:
            why = f"{pictures} pictures of {world.prompts} prompts"
            results[f"{name}, {world.name}"] = {"withheld": why, "holds": True}
            continue
        before = truths["none"][number]
        cells = {f"{name}, {world.name}": Cell(before, "distance")}
        own, changes = {}, {}
        for change, correlation in arms:
            after = truths[change][number]
            own[change, correlation] = f"{name}, {world.name}, {change} change"
            changes[change, correlation] = (
                f"{name} change, {world.name}, {change} change, arms correlate {correlation}"
            )
            if correlation == 0:
                cells[own[change, correlation]] = Cell(after, "distance")
            cells[changes[change, correlation]] = Cell(after - before, change=True)
        wanted = [arm for arm in arms if only is None or only in (own[arm], changes[arm])]
        if only is not None and only not in cells:
            continue
        for run in range(runs):
            rng = np.random.default_rng([SEED, 2, run, draw])
            latent = _latent(rng, world.prompts, each, size)
            other = _latent(rng, world.prompts, each, size)
            baseline = figure(world.population.features(latent, "none"))
            cells[f"{name}, {world.name}"].found.append(estimate(baseline))
            for change, correlation in wanted:
                beside = _beside(latent, other, correlation)
                values = figure(world.population.features(beside, change))
                if correlation == 0:
                    cells[own[change, correlation]].found.append(estimate(values))
                cells[changes[change, correlation]].found.append(estimate(values - baseline))
        results |= {place: cell.result() for place, cell in cells.items() if cell.found}
    return results


def _into(cells: dict[str, Cell], name: str, cell: Cell, found: Estimate) -> None:
    cells.setdefault(name, cell).found.append(found)


# --- figures of single pictures, and of time -----------------------------------------------------


def clip_like(latent: np.ndarray, change: float = 0.0) -> np.ndarray:
    """A score [n] of mean 31 and standard deviation 2.2, plus the change."""
    return 31 + change + 2.2 * latent[:, 0].astype(np.float64)


def skewed(latent: np.ndarray, change: float = 0.0) -> np.ndarray:
    """Exponential [n], of mean 1 plus the change."""
    return -(1 + change) * np.log(ndtr(-latent[:, 0].astype(np.float64)))


_FIGURES = {"clip-like": (clip_like, 31.0, -0.1), "skewed": (skewed, 1.0, 0.05)}


def _sums(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[n] -> [20]."""
    return np.bincount(places, weights=values, minlength=GROUPS)


def _mean_values(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return ratios(_sums(values, places), _sums(np.ones(len(values)), places))


def means(runs: int, draw: int = 0, only: str | None = None) -> dict[str, dict[str, Any]]:
    """Means of single pictures' figures, and their paired changes."""
    cells: dict[str, Cell] = {}
    for prompts, each, name in product((40, 200, 1000), (1, 8), _FIGURES):
        figure, mean, change = _FIGURES[name]
        places = groups(np.arange(prompts)).repeat(each)
        kind = f"{prompts} prompts, {each} a prompt"
        for run in range(runs):
            rng = np.random.default_rng([SEED, 3, run, draw, prompts, each])
            latent, other = _latent(rng, prompts, each), _latent(rng, prompts, each)
            before = _mean_values(figure(latent), places)
            _into(cells, f"{name} mean, {kind}", Cell(mean), estimate(before))
            for correlation in (0.0, 0.95):
                after = _mean_values(figure(_beside(latent, other, correlation), change), places)
                place = f"{name} change, {kind}, arms correlate {correlation}"
                _into(cells, place, Cell(change, change=True), estimate(after - before))
    return {name: cell.result() for name, cell in cells.items()}


def shares(runs: int, draw: int = 0, only: str | None = None) -> dict[str, dict[str, Any]]:
    """Changes of a yes/no figure, rare (.4% lost, .2% gained) and common (8% and 5%)."""
    cells: dict[str, Cell] = {}
    rates = {"rare": (0.004, 0.002), "common": (0.08, 0.05)}
    for prompts, each, kind in product((40, 200, 1000), (1, 8), rates):
        lost, gained = rates[kind]
        places = groups(np.arange(prompts)).repeat(each)
        for run in range(runs):
            rng = np.random.default_rng([SEED, 4, run, draw, prompts, each])
            drawn = _latent(rng, prompts, each)[:, 0].astype(np.float64)
            found = paired_shares(
                _sums(np.ones(len(drawn)), places),
                _sums(drawn > -ndtri(gained), places),
                _sums(drawn < ndtri(lost), places),
                each,
            )
            place = f"yes/no change, {kind}, {prompts} prompts, {each} a prompt"
            _into(cells, place, Cell(gained - lost, change=True), found)
    return {name: cell.result() for name, cell in cells.items()}


def _seconds(latent: np.ndarray, faster: float = 1.0) -> np.ndarray:
    """Seconds of batches [n], log-normal, of mean 1 over ``faster``."""
    spread = _SPREAD_OF_TIMES
    return np.exp(spread * latent[:, 0].astype(np.float64) - spread**2 / 2) / faster


def _rates(seconds: np.ndarray) -> np.ndarray:
    places = groups(np.arange(len(seconds)))
    return ratios(_BATCH * _sums(np.ones(len(seconds)), places), _sums(seconds, places))


def times(runs: int, draw: int = 0, only: str | None = None) -> dict[str, dict[str, Any]]:
    """Images/s and speed-up, grouped by batch."""
    cells: dict[str, Cell] = {}
    for batches in (25, 250):
        for run in range(runs):
            rng = np.random.default_rng([SEED, 5, run, draw, batches])
            latent, other = _latent(rng, batches, 1), _latent(rng, batches, 1)
            before = _rates(_seconds(latent))
            _into(cells, f"images a second, {batches} batches", Cell(_BATCH), estimate(before))
            for correlation in (0.0, 0.95):
                after = _rates(_seconds(_beside(latent, other, correlation), 1.3))
                place = f"speed-up, {batches} batches, arms correlate {correlation}"
                _into(cells, place, Cell(1.3), estimate(after / before))
    return {name: cell.result() for name, cell in cells.items()}


# --- thresholds ----------------------------------------------------------------------------------

_PILOTS = 20


def nights_of_means(
    nights: int, draw: int = 0, only: str | None = None
) -> dict[str, dict[str, Any]]:
    """``clip_score_change``: no worse than -.2, of arms that correlate .95."""
    margin = -0.2

    def night(rng: np.random.Generator, prompts: int, harm: bool) -> dict[str, Any]:
        places = groups(np.arange(prompts))
        latent, other = _latent(rng, prompts, 1), _latent(rng, prompts, 1)
        before = _mean_values(clip_like(latent), places)
        changed = clip_like(_beside(latent, other, 0.95), margin if harm else 0.0)
        found = asdict(estimate(_mean_values(changed, places) - before))
        return {"clip_score": 31.0, "change": {"clip_score": found}, "prompts": prompts}

    def interval(arm: dict[str, Any]) -> dict[str, float]:
        return arm["change"]["clip_score"]

    return _nights(
        "clip_score_change", {"no_worse_than": margin}, margin, 200, night, interval, nights, draw
    )


def nights_of_kid(nights: int, draw: int = 0, only: str | None = None) -> dict[str, dict[str, Any]]:
    """``kid_change``: no worse than what a step away from the reference costs."""
    population = Population(16, relu=False)
    reference, truths = population.reference(), truth(population)
    within, margin = mean_of_pairs(reference), truths["away"][1] - truths["none"][1]

    def night(rng: np.random.Generator, prompts: int, harm: bool) -> dict[str, Any]:
        size, places = population.dimensions, groups(np.arange(prompts))
        latent, other = _latent(rng, prompts, 1, size), _latent(rng, prompts, 1, size)

        def values(latent: np.ndarray, change: str) -> np.ndarray:
            features = population.features(latent, change)
            sums = kernel_sums(features, places, np.arange(prompts), reference, within=within)
            found = sums.values()
            assert found is not None
            return found

        arm = values(_beside(latent, other, 0.95), "away" if harm else "none")
        found = asdict(estimate(arm - values(latent, "none")))
        return {"kid_change": found, "prompts": prompts}

    return _nights(
        "kid_change",
        {"no_worse_than": margin},
        margin,
        200,
        night,
        lambda arm: arm["kid_change"],
        nights,
        draw,
    )


def nights_of_times(
    nights: int, draw: int = 0, only: str | None = None
) -> dict[str, dict[str, Any]]:
    """``speedup``: at least 1.25, where it is 1.25, and where it is 1.3."""

    def night(rng: np.random.Generator, prompts: int, harm: bool) -> dict[str, Any]:
        batches = -(-prompts // _BATCH)
        latent, other = _latent(rng, batches, 1), _latent(rng, batches, 1)
        faster = _seconds(_beside(latent, other, 0.95), 1.25 if harm else 1.3)
        values = _rates(faster) / _rates(_seconds(latent))
        found = asdict(estimate(values))
        return {"speedup": float(values[0]), "speedup_interval": found, "prompts": prompts}

    return _nights(
        "speedup",
        {"at_least": 1.25},
        0.05,
        400,
        night,
        lambda arm: arm["speedup_interval"],
        nights,
        draw,
    )


def _nights(
    figure: str,
    test: dict[str, float],
    difference: float,
    pilot: int,
    night: Callable[[np.random.Generator, int, bool], dict[str, Any]],
    interval: Callable[[dict[str, Any]], dict[str, float]],
    nights: int,
    draw: int,
) -> dict[str, dict[str, Any]]:
    """How many nights pass of an arm at the margin, and of one without harm.

    The number of prompts is the planner's, from a pilot run of ``pilot`` prompts without harm; one
    of several pilots, since it errs too.
    """
    judged = Thresholds.model_validate({figure: test})
    planned = []
    for number in range(_PILOTS):
        found = Estimate(
            **interval(night(np.random.default_rng([SEED, 6, number, draw]), pilot, False))
        )
        planned.append(prompts_needed(pilot, found.standard_error, difference))
    results = {}
    for harm in (True, False):
        passed = [
            thresholds.judge(
                night(
                    np.random.default_rng([SEED, 7, number, draw]), planned[number % _PILOTS], harm
                ),
                {},
                judged,
            )[0]["passed"]
            for number in range(nights)
        ]
        share, what = float(np.mean(passed)), "harm" if harm else "no harm"
        limit = _PASSED[what]
        slack = 2 * _error(limit, nights)
        results[f"threshold on {figure}, {what}"] = {
            "passes": round(share, 4),
            "prompts": int(np.median(planned)),
            "holds": share <= limit + slack if harm else share >= limit - slack,
        }
    return results
