"""The simulation's own arithmetic; what it finds is in docs/benchmarks/coverage.json."""

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import Cell, Population, World
from tgate_batch.metrics.frechet import Statistics, frechet_distance
from tgate_batch.metrics.jackknife import Estimate
from tgate_batch.metrics.kid import mean_of_pairs, polynomial


def cell(truth, *intervals, **more):
    return Cell(truth, found=[Estimate(0.0, low, high) for low, high in intervals], **more)


def test_covers_is_the_share_of_intervals_with_the_truth_inside():
    found = cell(1.0, (0, 2), (0.5, 1), (2, 3), (0, 0.5)).result()
    assert (found["covers"], found["width"], found["holds"]) == (0.5, 0.75, False)


def test_wrong_sign_is_an_interval_on_the_other_side_of_nothing():
    found = cell(1.0, (-2, -1), (-1, 2), (1, 2), (2, 3), change=True).result()
    assert found["wrong_sign"] == 0.25


def test_cell_holds_down_to_two_standard_errors_below_its_level():
    # of 100 runs: .93 less 2 * .0255 is .879
    held, missed = [(0, 2)], [(2, 3)]
    assert cell(1.0, *held * 88, *missed * 12).result()["holds"]
    assert not cell(1.0, *held * 87, *missed * 13).result()["holds"]


def test_truth_by_formula_is_that_of_very_many_pictures():
    population = Population(4, relu=False)
    reference = population.reference()
    rows = population.features(np.random.default_rng(1).normal(size=(400_000, 4)), "small")
    distance, squared = coverage.truth(population)["small"]
    many = frechet_distance(Statistics.of(rows), Statistics.of(reference))
    assert distance == pytest.approx(many, rel=0.02)
    cross = polynomial(rows[:100_000], reference).mean()
    expected = mean_of_pairs(rows[:5000]) - 2 * cross + mean_of_pairs(reference)
    assert squared == pytest.approx(expected, abs=0.15)


def test_products_of_a_sample_are_those_of_its_pairs():
    a, b = np.random.default_rng(0).normal(size=(2, 9, 3))
    own, other = coverage._Products.of([a[:4], a[4:]]), coverage._Products.of([b])
    assert own.kernel(other) == pytest.approx(polynomial(a, b).mean())
    assert own.own_pairs() == pytest.approx(mean_of_pairs(a))


def test_below_three_pictures_a_dimension_every_frechet_interval_is_withheld():
    population = Population(64, relu=False)
    found = coverage.set_figures(World(population, 0.8, 1), coverage.truth(population), 1)
    withheld = [name for name, result in found.items() if "withheld" in result]
    assert withheld == ["Frechet distance, Gaussian 64-d, 0.8 pictures a dimension, 1 a prompt"]
    assert all("Frechet" not in name for name in found if name not in withheld)


def test_cell_that_is_drawn_alone_is_the_same():
    population = Population(16, relu=True)
    truths = dict.fromkeys(coverage.CHANGES, (1.0, 1.0))
    world = World(population, 5, 1)
    every = coverage.set_figures(world, truths, 3)
    for name in every:
        assert coverage.set_figures(world, truths, 3, 0, name)[name] == every[name]


def test_figures_of_pictures_and_times_have_a_cell_for_each_kind():
    assert len(coverage.means(2)) == 36
    assert len(coverage.shares(2)) == 12
    assert len(coverage.times(2)) == 6
    assert set(coverage.nights_of_times(4)) == {
        "threshold on speedup, harm",
        "threshold on speedup, no harm",
    }
