import pytest

from tgate_batch.metrics.throughput import throughput


def batch(name, size, seconds, warm_up=False, **stages):
    row = {"batch": name, "batch_size": size, "batch_seconds": seconds, "warm_up": warm_up}
    return [{**row, **stages} for _ in range(size)]


def test_four_images_in_two_seconds_are_two_a_second():
    assert throughput(batch("a", 4, 2.0)).images_per_second_per_worker == 2.0


def test_rows_of_one_batch_count_once():
    measured = throughput(batch("a", 4, 2.0) + batch("b", 4, 6.0))
    assert (measured.images, measured.batches) == (8, 2)
    assert measured.images_per_second_per_worker == 1.0


def test_the_warm_up_batch_is_left_out():
    measured = throughput(batch("first", 4, 100.0, warm_up=True) + batch("a", 4, 2.0))
    assert measured.images_per_second_per_worker == 2.0
    assert measured.batch_seconds_p95 == 2.0


def test_a_run_of_warm_ups_alone_measured_nothing():
    assert throughput(batch("first", 4, 100.0, warm_up=True)) is None


def test_rows_of_failed_prompts_carry_no_time_and_are_passed_over():
    failed = {"batch": None, "batch_size": None, "batch_seconds": None, "warm_up": None}
    assert throughput([failed, *batch("a", 2, 1.0)]).images == 2
    assert throughput([failed]) is None


def test_percentiles_are_over_batches():
    rows = [row for n in range(1, 102) for row in batch(str(n), 1, float(n))]
    measured = throughput(rows)
    assert measured.batch_seconds_p50 == 51.0
    assert measured.batch_seconds_p95 == 96.0


def test_stages_split_the_seconds_of_an_image():
    measured = throughput(
        batch("a", 4, 2.0, denoise_seconds=1.6, decode_seconds=0.4, encode_seconds=0.01)
    )
    assert measured.denoise_seconds_per_image == pytest.approx(0.4)
    assert measured.decode_seconds_per_image == pytest.approx(0.1)
    assert measured.encode_seconds_per_image == pytest.approx(0.01)


def test_a_stage_that_was_not_measured_is_unknown():
    assert throughput(batch("a", 4, 2.0)).decode_seconds_per_image is None
