"""Small sums behind the report's plots, each with an answer one can work out by hand."""

import numpy as np
import pytest

from benchmarks.scale_scoring import fabricate, scored
from tgate_batch.metrics.throughput import Batches
from tgate_batch.output import run as runs
from tgate_batch.score import partial_sums, plot_data, registry
from tgate_batch.score.partial_sums import MOST, ArmSums

PSNR, LPIPS, ACCURACY = (
    next(metric for metric in registry.METRICS if metric.name == name)
    for name in ("psnr", "lpips", "prompt_accuracy")
)


def batches(seconds, warm_up=0):
    """Batches of 2 images, 2 rows each; the first ``warm_up`` of them are warm-ups."""
    n = len(seconds)
    return Batches(
        np.arange(n) * 2,
        np.full(n, 2),
        np.array(seconds, float),
        np.zeros(n),
        np.zeros(n),
        np.arange(n) < warm_up,
    )


def test_course_has_a_slice_for_each_sixteenth_of_a_chunk():
    found = plot_data.course(batches([1.0] * 32, warm_up=1), np.arange(32), 3, 32)
    assert found["course", "000003", "images"].tolist() == [2.0] + [4.0] * 15
    assert found["course", "000003", "seconds"].tolist() == [1.0] + [2.0] * 15


def test_course_of_many_chunks_is_at_most_32_points_and_loses_no_picture():
    every = {}
    for chunk in range(5):
        partial_sums.add(every, plot_data.course(batches([0.5] * 16), np.arange(16), chunk, 16))
    points = plot_data.plot_data(every, [])["course"]
    assert points == [{"images": 6, "seconds": 1.5}] * 26 + [{"images": 4, "seconds": 1.0}]


def test_each_worker_has_its_own_pictures_and_seconds():
    names = np.array(["a", "a", "b", "b", "a", "a"], object)
    found = plot_data.by_worker(batches([9.0, 2.0, 3.0], warm_up=1), names)
    assert plot_data.plot_data(found, [])["by_worker"] == {
        "a": {"images": 2, "seconds": 3.0},
        "b": {"images": 2, "seconds": 2.0},
    }


def test_changes_fall_into_bins_and_the_end_bins_have_all_beyond():
    found = plot_data.spread(PSNR, np.array([-1.0, 0.0, 30.0, 59.9, 99.0]))
    counts = plot_data.plot_data(found, [PSNR])["spread"]["psnr"]["counts"]
    assert len(counts) == 40
    assert {place: count for place, count in enumerate(counts) if count} == {0: 2, 20: 1, 39: 2}


def test_metric_without_a_range_has_no_distribution():
    assert plot_data.spread(ACCURACY, np.array([1.0])) == {}


@pytest.mark.parametrize(
    ("metric", "changes", "rows"),
    [
        (PSNR, [30.0, 10.0, np.nan, 20.0], [1, 3, 0]),  # the least alike first
        (LPIPS, [0.1, 0.5, np.nan, 0.2], [1, 3, 0]),  # the greatest distance first
        (ACCURACY, [0.0, 1.0, -1.0, np.nan], [2]),  # what was lost, and nothing else
    ],
)
def test_pictures_that_changed_for_the_worse_come_first(metric, changes, rows):
    found = plot_data.worst(metric, np.array(changes), [])
    assert [row for row, _, _ in found] == rows


def test_picture_joins_the_worst_only_where_it_is_worse_than_the_last_of_them():
    held = [{"badness": -10.0}] * MOST
    assert plot_data.worst(PSNR, np.array([11.0, 10.0]), held) == []
    assert [row for row, *_ in plot_data.worst(PSNR, np.array([11.0, 9.0]), held)] == [1]


def test_lists_of_the_worst_merge_in_any_order():
    one = ArmSums(worst={"psnr": [{"badness": -5.0}, {"badness": -20.0}]})
    other = ArmSums(worst={"psnr": [{"badness": -10.0}]})
    for first, second in ((one, other), (other, one)):
        merged = ArmSums()
        merged.merge(first)
        merged.merge(second)
        assert [picture["badness"] for picture in merged.worst["psnr"]] == [-5.0, -10.0, -20.0]


def test_scores_of_a_run_have_them_and_chunks_change_nothing(tmp_path, monkeypatch):
    settings = fabricate(tmp_path, 640, 8, 64, 300)
    found = scored(settings)["tgate"]
    assert sum(point["images"] for point in found["course"]) == 640
    assert {name: one["images"] for name, one in found["by_worker"].items()} == {
        "worker-0": 320,
        "worker-1": 320,
    }
    assert found["most_changed"] == {"prompt_accuracy": []}  # the fabricated arm only gains
    folder = runs.load_run(settings.output).folder
    for name in folder.names("scores/sums"):
        folder.delete(name)
    monkeypatch.setattr(partial_sums, "CHUNK", 150)
    again = scored(settings)["tgate"]
    assert sum(point["images"] for point in again["course"]) == 640
    assert again["most_changed"] == found["most_changed"]
    for name, one in again["by_worker"].items():
        assert one == pytest.approx(found["by_worker"][name])
