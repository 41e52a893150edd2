from pathlib import Path

import pytest

from tgate_batch.config import Threshold, Thresholds
from tgate_batch.errors import UserError
from tgate_batch.report.columns import columns
from tgate_batch.report.thresholds import check, judge, known, markdown

BASELINE = {"images": 999, "errors": 1, "broken": 0, "fd": 20.0, "fid": None, "paired": None}


def between(low, value, high):
    return {"value": value, "low": low, "high": high}


# of an interval [0, 20.93] about 10.465 the one-sided bounds are 1.82 and 19.11
ARM = {
    **BASELINE,
    "fd": 23.0,
    "distance_change": between(-1.0, 3.0, 7.0),
    "kid": between(0.4, 0.5, 0.6),
    "kid_change": between(0.05, 0.1, 0.15),
    "paired": {"psnr": 28.0},
    "clip_score": 31.7,
    "prompt_accuracy": 0.9,
    "intervals": {"psnr": between(27.0, 28.0, 29.0), "clip_score": between(31.0, 31.7, 32.4)},
    "change": {"clip_score": between(-0.3, -0.1, 0.1)},
    "speedup": 1.5,
    "speedup_interval": between(1.4, 1.5, 1.6),
    "prompts": 210,
    "prompts_compared": 200,
    "withheld": {},
}


def verdict(name, arm=ARM, undecided="fail", **asked):
    limits = Thresholds.model_validate({"undecided": undecided, name: asked})
    (found,) = judge(arm, BASELINE, limits)
    return found


def outcome(found):
    return (found["passed"], found["decided"])


PASS, FAIL, UNDECIDED = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(
    ("name", "bounds", "margin"),
    [
        ("fd", {"max": 23.5}, 0.5),
        ("fd", {"max": 22.0}, -1.0),
        ("fd", {"min": 23.0, "max": 23.25}, 0.0),
        ("fd_change", {"max": 2.5}, -0.5),
        ("clip_score", {"min": 31.6}, 0.1),
        ("errors_percent", {"max": 0.1}, 0.0),
        ("psnr", {"min": 30}, -2.0),
    ],
)
def test_window_is_on_the_value_and_its_margin_says_by_how_much(name, bounds, margin):
    found = verdict(name, **bounds)
    assert found["margin"] == pytest.approx(margin)
    assert outcome(found) == (margin >= 0, True)
    assert "window" in found["verdict"]


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        # higher is better: -.1 with bounds -.265 and .065
        ("clip_score_change", {"no_worse_than": -0.27}, PASS),
        ("clip_score_change", {"no_worse_than": -0.26}, UNDECIDED),
        ("clip_score_change", {"no_worse_than": 0.06}, UNDECIDED),
        ("clip_score_change", {"no_worse_than": 0.07}, FAIL),
        # lower is better: .1 with bounds .0587 and .1413
        ("kid_change", {"no_worse_than": 0.142}, PASS),
        ("kid_change", {"no_worse_than": 0.141}, UNDECIDED),
        ("kid_change", {"no_worse_than": 0.059}, UNDECIDED),
        ("kid_change", {"no_worse_than": 0.058}, FAIL),
        ("fd_change", {"no_worse_than": 6.4}, PASS),
        # 1.5 with bounds 1.4174 and 1.5826, 28 with bounds 27.174 and 28.826
        ("speedup", {"at_least": 1.417}, PASS),
        ("speedup", {"at_least": 1.42}, UNDECIDED),
        ("speedup", {"at_least": 1.59}, FAIL),
        ("psnr", {"at_least": 27.17}, PASS),
        ("kid", {"at_most": 0.59}, PASS),
        ("kid", {"at_most": 0.55}, UNDECIDED),
        ("kid", {"at_most": 0.41}, FAIL),
    ],
)
def test_test_is_decided_where_a_one_sided_bound_says_so(name, asked, expected):
    assert outcome(verdict(name, **asked)) == expected


def test_undecided_test_says_how_many_more_prompts_would_do():
    # standard error .2 / 2.093; (3.057 * .0956 / .16)^2 * 200 = 667
    found = verdict("clip_score_change", no_worse_than=-0.26)
    assert found["verdict"] == (
        "undecided clip_score_change -0.1 [-0.3, 0.1] must be no worse than -0.26; "
        "about 724 more prompts would suffice"
    )


def test_undecided_test_on_the_failing_side_would_rather_fail():
    found = verdict("clip_score_change", no_worse_than=0.0)
    assert "more prompts would probably confirm the failure" in found["verdict"]


def test_undecided_passes_where_the_config_says_so_and_is_still_undecided():
    found = verdict("clip_score_change", no_worse_than=-0.26, undecided="pass")
    assert outcome(found) == (True, False)


def test_withheld_change_is_undecided_and_says_why():
    reason = "not comparable: 0.16 images per dimension, 3,840 needed"
    arm = ARM | {"distance_change": None, "withheld": {"distance_change": reason}}
    for asked in ({"no_worse_than": 1.0}, {"max": 1.0}):
        found = verdict("fd_change", arm, **asked)
        assert outcome(found) == UNDECIDED
        assert found["verdict"] == f"undecided fd_change: {reason}"


@pytest.mark.parametrize("interval", [None, between(None, -0.1, None)])
def test_interval_of_too_few_prompts_leaves_a_test_undecided(interval):
    reason = "12 prompts, and an interval needs 40"
    arm = ARM | {"change": {"clip_score": interval}, "withheld": {"change": reason}}
    found = verdict("clip_score_change", arm, no_worse_than=-0.2)
    assert found["verdict"] == f"undecided clip_score_change: {reason}"


@pytest.mark.parametrize("asked", [{"min": 1}, {"at_least": 1}])
def test_what_was_not_measured_fails_whatever_is_withheld(asked):
    arm = ARM | {"clip_score": None, "withheld": {"intervals": "few", "change": "few"}}
    found = verdict("clip_score", arm, **asked, undecided="pass")
    assert outcome(found) == FAIL
    assert found["verdict"] == "FAIL clip_score was not measured, and must be at least 1"
    assert outcome(verdict("clip_score_change", arm, no_worse_than=-1)) == FAIL


def test_change_of_the_distance_that_an_arm_does_not_have_fails():
    arm = ARM | {"distance_change": None, "withheld": {"distance_change": "not comparable"}}
    assert outcome(verdict("fid_change", arm, no_worse_than=1)) == FAIL


def test_older_key_has_the_same_name():
    found = verdict("fd", max=24)
    assert found["threshold"] == found["gate"] == "fd"


def test_baseline_is_not_judged_beside_itself():
    windows = {name: {"max": 1} for name in known()}
    judged = judge(BASELINE, BASELINE, Thresholds.model_validate(windows))
    assert set(known()) - {found["threshold"] for found in judged} == {
        "fid_change",
        "fd_change",
        "kid_change",
        "clip_score_change",
        "prompt_accuracy_change",
        "macs_saved",
        "psnr",
        "ssim",
        "lpips",
        "speedup",
    }


def test_arm_without_rows_has_no_share_of_errors():
    empty = {"images": 0, "errors": 0, "broken": 0}
    assert verdict("errors_percent", empty, max=0)["value"] is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fdi", "did you mean fd or fid?"),
        ("speed_up", "did you mean speedup?"),
        ("distance_change", "did you mean fid_change or fd_change?"),  # a key of report.json
        ("paired.psnr", "did you mean psnr?"),
        ("change.clip_score.value", "did you mean clip_score_change?"),
        ("zzz", "one of: images, errors"),
    ],
)
def test_unknown_threshold_is_refused_with_near_names_and_the_page_that_has_all(name, near):
    with pytest.raises(UserError) as caught:
        check({name: Threshold(max=1)})
    assert f"unknown figure '{name}'; {near}" in str(caught.value)
    assert "docs/metrics.md" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_page_names_every_figure_that_a_threshold_may_bound_with_its_key():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert markdown() in page, "put thresholds.markdown() there"


def test_keys_of_the_page_lead_to_the_values():
    arm = {"fd": 2.0, "distance_change": {"value": 3.0}, "paired": {"psnr": 4.0}}
    rows = [line.split("`") for line in markdown().splitlines()[2:]]
    keys = {row[1]: row[3] for row in rows}
    for name in ("fd", "fd_change", "psnr"):
        value = arm
        for part in keys[name].split("."):
            value = value[part]
        assert value == next(c for c in columns() if c.name == name).value(arm)


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("clip_score", {"no_worse_than": 31}, "tests changes, and clip_score is not a change"),
        ("fd", {"at_most": 31}, r"fd has no interval for at_most to test.* window"),
        ("prompt_accuracy", {"at_least": 0.9}, "prompt_accuracy has no interval"),
        ("precision", {"no_worse_than": 0.1}, "precision has no interval"),
        ("errors_percent", {"at_most": 1}, r"give it a window on the value \(min, max\)"),
    ],
)
def test_test_that_can_judge_nothing_is_refused(name, asked, said):
    with pytest.raises(UserError, match=said) as caught:
        check({name: Threshold(**asked)})
    assert "\n" not in str(caught.value)
