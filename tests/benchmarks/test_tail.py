"""The tail of a run, simulated through the pool that a run has."""

import pytest

from benchmarks.tail import bench_tail, makespan_over_ideal


def test_one_worker_is_never_idle():
    assert makespan_over_ideal(600, [1.0]) == pytest.approx(1.0)


def test_one_prompt_keeps_one_of_two_workers_and_two_arms_keep_both():
    assert makespan_over_ideal(1, [1.0, 1.0], arms={"a": 1.0}) == pytest.approx(2.0)
    assert makespan_over_ideal(1, [1.0, 1.0], arms={"a": 1.0, "b": 1.0}) == pytest.approx(1.0)


def test_many_workers_end_together():
    found = bench_tail(draws=3)
    assert found["100 workers"] < 1.05
    assert found["256 workers"] < 1.05
    assert found["100 of mixed speed"] < 1.06
