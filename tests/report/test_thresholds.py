import pytest

from tgate_batch import config
from tgate_batch.config import GATES, Limit
from tgate_batch.errors import UserError
from tgate_batch.report.thresholds import judge

BASELINE = {"images": 999, "errors": 1, "broken": 0, "fd": 20.0, "fid": None, "paired": None}
ARM = {**BASELINE, "fd": 23.0, "paired": {"psnr": 28.0}, "clip_score": 31.7}


def verdict(name, arm=ARM, **limit):
    (found,) = judge(arm, BASELINE, {name: Limit(**limit)})
    return found


@pytest.mark.parametrize(
    ("name", "limit", "margin"),
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
def test_margin_says_by_how_much(name, limit, margin):
    found = verdict(name, **limit)
    assert found["margin"] == pytest.approx(margin)
    assert found["passed"] is (margin >= 0)


def test_what_was_not_measured_fails():
    found = verdict("fid", max=24)
    assert not found["passed"]
    assert found["verdict"] == "FAIL fid was not measured, and must be at most 24"


def test_baseline_is_not_judged_beside_itself():
    limits = {name: Limit(max=1) for name in GATES}
    judged = {found["gate"] for found in judge(BASELINE, BASELINE, limits)}
    assert judged == set(GATES) - {
        "fid_change_percent",
        "fd_change_percent",
        "psnr",
        "ssim",
        "speedup",
    }


@pytest.mark.parametrize(
    ("gates", "said"),
    [({"fdi": {"max": 1}}, "unknown gate 'fdi'"), ({"fid": {}}, "needs min, max or both")],
)
def test_bad_gate_is_refused(gates, said):
    data = {"models": ["demo"], "prompts": {"path": "x"}, "arms": {"a": {}}, "output": "o"}
    with pytest.raises(UserError, match=said):
        config.parse({**data, "gates": gates})
