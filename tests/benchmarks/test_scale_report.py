"""However large the run and its pictures: a page of less than 5 MB, soon and in little memory."""

import pytest

from benchmarks.scale_report import bench_scale_report


def test_page_of_large_pictures_is_small():
    found = bench_scale_report(prompts=100, side=1024)
    assert found["page_bytes"] < 5e6
    assert found["pictures"] == 4 * 48


@pytest.mark.slow
def test_report_of_ten_thousand_prompts_is_written_within_a_minute():
    found = bench_scale_report(prompts=10_000, side=512)
    assert found["seconds"] < 60
    assert found["mib"] < 1024
    assert found["page_bytes"] < 5e6
