"""Tables of plans that one can work out by hand."""

import re
from pathlib import Path

import pytest
import yaml

from tgate_batch.config import Arm
from tgate_batch.gate import (
    Combination,
    Forecast,
    GatePlan,
    GuidanceInterval,
    SelfAttentionInterval,
    StepActions,
    combined,
    text_of,
)
from tgate_batch.gate.table import extrapolation

PAGE = Path(__file__).parents[2] / "docs" / "plans.md"
REFRESHED = GuidanceInterval(0, 3, "reuse", every=3)


def lines(plan, steps):
    """The signs of a table by the name of their line."""
    return dict(line.split() for line in text_of(plan.schedule(steps)).split("\n"))


def test_a_difference_is_kept_and_refreshed():
    assert lines(REFRESHED, 10)["guidance"] == "222dd2dd2d"
    assert lines(GuidanceInterval(0, 3, "reuse"), 6)["guidance"] == "222ddd"
    assert lines(GuidanceInterval(2, 3, "reuse"), 6)["guidance"] == "112ddd"
    assert lines(GuidanceInterval(2, 0.5), 6)["guidance"] == "112111"


def test_a_forecast_lists_its_steps_and_weights():
    rows = Forecast(first=3, every=3).schedule(9)
    assert [step for step, row in enumerate(rows) if row.is_forecast] == [3, 4, 6, 7]
    assert rows[3].sources == ((1, -1.0), (2, 2.0))  # b + (b - a)
    assert rows[4].sources == ((1, -2.0), (2, 3.0))  # b + 2 (b - a)
    assert rows[6].sources == ((2, -1 / 3), (5, 4 / 3))  # b + (b - a) / 3
    stores = [step for step, row in enumerate(rows) if row.output.value == "store"]
    assert stores == [1, 2, 5]


def test_a_forecast_of_fewer_steps_than_its_order_needs_has_a_lower_order():
    assert Forecast((1, 3), order=2).schedule(4)[1].sources == ((0, 1.0),)
    assert Forecast((1, 3), order=2).schedule(4)[3].sources == ((0, -0.5), (2, 1.5))


def test_the_weights_continue_a_polynomial():
    assert extrapolation([4], 9) == [1.0]
    assert extrapolation([1, 2, 3], 4) == [1.0, -3.0, 3.0]
    square = [n * n for n in (0, 2, 5)]
    weights = extrapolation([0, 2, 5], 7)
    assert sum(w * value for w, value in zip(weights, square, strict=True)) == pytest.approx(49)


def test_where_guidance_changes_nothing_is_forecast():
    plan = combined(GuidanceInterval(0, 3), Forecast((3, 4)))
    assert lines(plan, 6)["guidance"] == "2221~1"
    assert plan.schedule(6)[4].sources == ((3, 1.0),)


def test_what_a_forecast_step_should_store_its_neighbour_stores():
    plan = combined(GatePlan(4, fi_interval=9), Forecast((3,)))
    assert lines(plan, 6) == {
        "denoiser": "###~##",
        "guidance": "222~11",
        "cross-attention": "##s~..",
        "self-attention": "##s~..",
    }
    assert plan.schedule(6)[2].mean
    refreshed = combined(REFRESHED, Forecast((5,)))
    assert lines(refreshed, 8)["guidance"] == "222dd~2d"
    both = combined(SelfAttentionInterval(3), Forecast((3,)))
    assert lines(both, 9)["self-attention"] == "s..~s.s.."


def test_self_attention_is_computed_where_a_branch_joins_in():
    plan = combined(REFRESHED, SelfAttentionInterval(4, warm_up=1))
    assert lines(plan, 10)["guidance"] == "222dd2dd2d"
    assert lines(plan, 10)["self-attention"] == "#s..#s..s."


def test_weights_scale_the_difference_of_the_branches():
    plan = GuidanceInterval(weights={0: 5.0, 2: 3.0, 0.8: 1.0}, scale=5.0)
    rows = plan.schedule(5)
    assert [row.strength for row in rows] == [1.0, 1.0, 0.5, 0.5, 1.0]
    assert [row.guided for row in rows] == [True, True, True, True, False]
    assert GuidanceInterval(weights=(5.0, 3.0), scale=5.0).schedule(3) == rows[1:4]


def test_a_plan_that_changes_nothing_has_a_plain_table_and_is_refused_for_a_run():
    for plan in (GatePlan(9), GuidanceInterval(0, 9), Forecast(first=9), SelfAttentionInterval(1)):
        assert plan.schedule(4) == (StepActions(),) * 4
        with pytest.raises(ValueError, match=r"beyond the 4|at all 4|none of the 4"):
            plan.check(4)


def test_combinations_without_meaning_are_refused_by_name():
    with pytest.raises(ValueError, match="a gate already ends guidance"):
        combined(GatePlan(3), GuidanceInterval(0, 3))
    with pytest.raises(ValueError, match="a gate has its own intervals"):
        combined(GatePlan(3), SelfAttentionInterval(2))
    with pytest.raises(ValueError, match="two plans of the kind Forecast"):
        combined(Forecast((1,)), combined(GatePlan(3), Forecast((2,))))
    assert combined(None, None) is None
    assert combined(None, GatePlan(3)) == GatePlan(3)
    assert combined(Forecast((2,)), GatePlan(3)) == Combination((GatePlan(3), Forecast((2,))))


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (GuidanceInterval, {"end": 3, "then": "stop"}, "then='stop' is unknown"),
        (GuidanceInterval, {"then": "reuse"}, "say where guidance ends"),
        (GuidanceInterval, {"end": 3, "every": 2}, "every=2 refreshes a difference that is not"),
        (GuidanceInterval, {"weights": (5.0,)}, "Fix: give scale"),
        (GuidanceInterval, {"weights": (0.5,), "scale": 5.0}, "weights=0.5 is no guidance scale"),
        (Forecast, {}, "either steps or first"),
        (Forecast, {"steps": (0,)}, "steps=0 cannot be counted"),
        (Forecast, {"first": 2, "every": 1}, "every=1 cannot be counted"),
        (Forecast, {"first": 2, "order": 3}, "order=3 is not supported"),
        (SelfAttentionInterval, {"interval": 0}, "interval=0 cannot be counted"),
    ],
)
def test_values_that_cannot_work_are_named(kind, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**wrong)


def test_the_diagrams_of_the_page_are_the_tables():
    """Each block of text on the page is the table of the arm above it."""
    pairs = re.findall(r"^`arm: (\{.*\})`\n+```text\n([^`]*)```", PAGE.read_text(), re.M)
    assert len(pairs) >= 8
    for arm, diagram in pairs:
        plan = Arm.model_validate(yaml.safe_load(arm)).combined_plan
        assert text_of(plan.schedule(25)) == diagram.rstrip(), arm
