import pytest

from tgate_batch.render.timing import BESIDE, ON_DEVICE, Energy, StageTimer, aggregate_workers


def worker(wall, gpu=None, joules=None, **seconds):
    known = dict.fromkeys((*ON_DEVICE, *BESIDE), 0.0) | seconds | {"wall": wall}
    return {"seconds": known, "gpu": gpu, "joules": joules}


def test_idle_is_what_no_stage_of_the_device_explains():
    found = aggregate_workers(
        [worker(10, load=2, denoise=5, encode=4), worker(10, denoise=9, decode=1)]
    )
    assert found["workers"] == 2
    assert found["seconds"]["idle"] == 3
    assert found["busy_share"] == 15 / 20


def test_gpu_that_two_workers_share_is_counted_once():
    pair = [worker(1, "GPU-a", 30.0), worker(1, "GPU-a", 40.0), worker(1, "GPU-b", 5.0)]
    assert aggregate_workers(pair)["joules"] == 45


def test_gpu_that_workers_use_one_after_the_other_is_counted_for_each():
    runs = [(100.0, 130.0), (120.0, 150.0), (500.0, 510.0)]
    each = [worker(1, "GPU-a", end - start) | {"counted": (start, end)} for start, end in runs]
    assert aggregate_workers(each)["joules"] == 60


def test_no_workers_and_no_gpu_have_nothing_to_tell():
    assert aggregate_workers([]) is None
    assert aggregate_workers([worker(1)])["joules"] is None
    assert Energy(None).joules() is None


def test_times_add_up():
    stages = StageTimer()
    stages.add("denoise", 1.5)
    stages.add("denoise", 0.5)
    with stages.timed("write"):
        pass
    found = stages.summary()
    assert found["denoise"] == 2
    assert 0 <= found["write"] <= found["wall"]
    assert found["load"] == pytest.approx(0)
