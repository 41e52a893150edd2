import pytest

from tgate_batch.errors import UserError
from tgate_batch.report.plan_size import plan_size

# standard error 2.093 * .1 / 2.093
CHANGE = {"value": 0.0, "low": -0.2093, "high": 0.2093}
BASELINE = {"model": "demo", "arm": "baseline", "is_baseline": True, "prompts": 210}
ARM = BASELINE | {
    "arm": "tgate",
    "is_baseline": False,
    "prompts_compared": 200,
    "clip_score": 31.0,
    "change": {"clip_score": CHANGE},
}


def test_half_the_difference_needs_four_times_the_prompts():
    assert plan_size([BASELINE, ARM], "clip_score_change -0.2") == [
        "demo tgate: 648 prompts show clip_score_change -0.2 with power 90% "
        "(this run: 200 prompts, standard error 0.1)"
    ]
    (line,) = plan_size([BASELINE, ARM], "clip_score_change 0.1")
    assert "2,589 prompts show clip_score_change +0.1" in line


def test_figure_of_its_own_is_planned_for_the_baseline_too():
    arms = [
        arm | {"clip_score": 31.0, "intervals": {"clip_score": CHANGE}} for arm in (BASELINE, ARM)
    ]
    lines = plan_size(arms, "clip_score 0.2")
    assert [line.split(":")[0] for line in lines] == ["demo baseline", "demo tgate"]
    assert all("this run: 210 prompts" in line for line in lines)


@pytest.mark.parametrize(
    ("arms", "see", "said"),
    [
        ([], "clip_score_change -0.2", "no scores"),
        ([ARM], "clip_score_change 0", "difference of 0"),
        ([ARM], "clip_score_change", "a figure and a difference"),
        ([ARM], "clip_score_change much", "a figure and a difference"),
        ([ARM], "clip_score_change nan", "a figure and a difference"),
        (
            [ARM],
            "clip_scor -0.2",
            "unknown figure 'clip_scor'. Fix: give one of: .*clip_score_change",
        ),
        ([ARM], "fd 1", "unknown figure 'fd'"),
        ([BASELINE], "clip_score_change -0.2", "no interval to plan from"),
        (
            [
                ARM
                | {"change": None, "withheld": {"change": "12 prompts, and an interval needs 40"}}
            ],
            "clip_score_change -0.2",
            "no interval to plan from: 12 prompts",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(arms, see, said):
    with pytest.raises(UserError, match=said) as caught:
        plan_size(arms, see)
    assert "\n" not in str(caught.value)
