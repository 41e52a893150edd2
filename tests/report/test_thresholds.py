import pytest

from tgate_batch.config import Threshold
from tgate_batch.errors import UserError
from tgate_batch.report.thresholds import check, judge, known

BASELINE = {"images": 999, "errors": 1, "broken": 0, "fd": 20.0, "fid": None, "paired": None}
ARM = {**BASELINE, "fd": 23.0, "paired": {"psnr": 28.0}, "clip_score": 31.7}


def verdict(name, arm=ARM, **bounds):
    (found,) = judge(arm, BASELINE, {name: Threshold(**bounds)})
    return found


@pytest.mark.parametrize(
    ("name", "bounds", "margin"),
    [
        ("fd", {"max": 23.5}, 0.5),
        ("fd", {"max": 22.0}, -1.0),
        ("fd", {"min": 23.0, "max": 23.25}, 0.0),
        ("fd_change_percent", {"max": 10}, -5.0),
        ("clip_score", {"min": 31.6}, 0.1),
        ("errors_percent", {"max": 0.1}, 0.0),
        ("psnr", {"min": 30}, -2.0),
    ],
)
def test_margin_says_by_how_much(name, bounds, margin):
    found = verdict(name, **bounds)
    assert found["margin"] == pytest.approx(margin)
    assert found["passed"] is (margin >= 0)


def test_what_was_not_measured_fails():
    found = verdict("fid", max=24)
    assert not found["passed"]
    assert found["verdict"] == "FAIL fid was not measured, and must be at most 24"


def test_older_key_has_the_same_name():
    found = verdict("fd", max=24)
    assert found["threshold"] == found["gate"] == "fd"


def test_baseline_is_not_judged_beside_itself():
    judged = judge(BASELINE, BASELINE, {name: Threshold(max=1) for name in known()})
    assert set(known()) - {found["threshold"] for found in judged} == {
        "fid_change_percent",
        "fd_change_percent",
        "macs_saved",
        "psnr",
        "ssim",
        "lpips",
        "speedup",
    }


def test_arm_without_rows_has_no_share_of_errors():
    empty = {"images": 0, "errors": 0, "broken": 0}
    assert verdict("errors_percent", empty, max=0)["value"] is None


def test_thresholds_of_before_are_still_known():
    check(
        {
            "fid",
            "fd",
            "fid_change_percent",
            "fd_change_percent",
            "kid",
            "clip_score",
            "prompt_accuracy",
            "psnr",
            "ssim",
            "speedup",
            "errors_percent",
            "broken_percent",
            "usd_per_1000_images",
        }
    )


@pytest.mark.parametrize("name", ["fdi", "model", "distance_interval"])
def test_unknown_threshold_is_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match=f"unknown figure '{name}'.*fid, fd") as caught:
        check({name: Threshold(max=1)})
    assert "\n" not in str(caught.value)
