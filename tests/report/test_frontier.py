"""The answer of a plan search in words and in JSON."""

import pytest

from tgate_batch import config
from tgate_batch.config import Arm
from tgate_batch.plan_search.search import Outcome, PlanResult, State
from tgate_batch.report.frontier import Searched, frontier, sentence
from tgate_batch.score.plan_losses import loss_figures

CONFIG = config.parse(
    {
        "models": ["demo"],
        "prompts": {"path": "demo"},
        "arms": {"baseline": {}},
        "output": "out",
    }
)
PLANS = {
    "guidance-12": Arm(guidance_until=12),
    "steps-10-gate-4": Arm(steps=10, gate_step=4),
}


def searched(recommended=0, limits=None, earlier=0):
    """1,000 prompts; guidance until 12 saves 31% and was confirmed on 850."""
    figures = loss_figures(CONFIG, limits or {"prompt_accuracy": 0.02})
    each = len(figures)
    outcome = Outcome(
        recommended,
        (0,),
        (
            PlanResult(State.CONFIRMED, 150, 850, ((0.004, -0.01, 0.018),) * each),
            PlanResult(State.DROPPED, 25, 0, ((0.3, 0.2, 0.4),) * each),
        ),
        () if recommended is None else (0.019,) * each,
        150,
        850,
        1000 + 1000 + 25,
    )
    macs = (100, 69, 30)
    return Searched("demo", PLANS, macs, figures, 0.95, 1000, 1, outcome, earlier)


def test_the_answer_is_a_sentence():
    assert sentence(searched(), 0.27) == (
        "guidance until step 12 saves 31% of the MACs and 27% of the time; it loses at most 0.02 "
        "of prompt accuracy (confirmed on 850 prompts that the search had not used, 95% "
        "confidence; estimate 0.004)"
    )


def test_a_distance_to_the_baseline_is_not_called_a_loss():
    assert "it stays within 0.05 of SSIM of the baseline's images" in sentence(
        searched(limits={"ssim": 0.05})
    )


def test_several_limits_are_all_in_the_sentence():
    told = sentence(searched(limits={"prompt_accuracy": 0.02, "ssim": 0.05}))
    assert "loses at most 0.02 of prompt accuracy and stays within 0.05 of SSIM" in told
    assert "estimates 0.004 and 0.004" in told


def test_without_a_plan_the_baseline_is_recommended_and_the_nearest_plan_is_named():
    told = sentence(searched(None))
    assert told.startswith("no plan was confirmed that loses at most 0.02 of prompt accuracy")
    assert "use the baseline" in told
    assert "nearest: guidance-12, estimate 0.004" in told


def test_the_prompts_that_may_confirm_the_nearest_plan_are_told():
    """Its error on 1,000 prompts is 0.007143, so 0.016 are 2.24 errors; 2.93 are needed."""
    needed = 1000 * (2.93 * 0.007143 / 0.016) ** 2 / 0.85
    assert needed == pytest.approx(2013, abs=1)
    assert "about 2,013 prompts may confirm it" in sentence(searched(None))


def test_a_spent_promise_is_said():
    assert "confirmed 1 other search before" in sentence(searched(earlier=1))


def test_work_and_payback_are_counted_in_images_of_the_baseline():
    found = searched()
    # 1,000 of the baseline, 1,000 at 69%, 25 at 30%
    assert found.work == pytest.approx(1000 + 690 + 7.5)
    assert found.paid_back_after == 5476  # 1697.5 / 0.31, rounded up


def test_the_frontier_has_every_plan_by_its_saving():
    content = frontier(searched())
    assert [plan["plan"] for plan in content["plans"]] == ["guidance-12", "steps-10-gate-4"]
    assert [plan["state"] for plan in content["plans"]] == ["confirmed", "dropped"]
    first = content["plans"][0]
    assert first["arm"] == {"guidance_until": 12}
    assert first["saving"] == 0.31
    assert first["images"] == 1000
    assert first["losses"] == {"prompt_accuracy": {"value": 0.004, "low": -0.01, "high": 0.018}}
    assert content["upper_bounds"] == {"prompt_accuracy": 0.019}
    assert content["images"] == 2025
