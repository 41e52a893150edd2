"""Losses of a plan against the baseline, from measurements made by hand."""

import numpy as np
import pytest

from tgate_batch import config
from tgate_batch.errors import UserError
from tgate_batch.output import layout
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.score.plan_losses import PlanLosses, loss_figures

SHARD = ShardPlan(0, 3, "digest", 0, 0)


def settings(images=1, **score):
    return config.parse(
        {
            "models": ["demo"],
            "prompts": {"path": "demo"},
            "sampling": {"images_per_prompt": images},
            "arms": {"baseline": {}},
            "score": score,
            "output": "out",
        }
    )


class ByHand(PlanLosses):
    """Losses of tables that are given: measurement and arm -> rows."""

    def __init__(self, tables, limits, images=1):
        super().__init__(None, "demo", "baseline", loss_figures(settings(images), limits), None)
        self.tables = tables

    def _table(self, measurement, arm, shard):
        return self.tables[measurement, arm]


def rows(*broken, images=1):
    """Rows of three prompts; ``broken``: what is wrong with each image, None if nothing."""
    broken = broken or (None,) * 3 * images
    return [
        {
            "prompt_id": f"p{place // images}",
            "image_number": place % images,
            "status": "error" if why == "error" else "ok",
            "broken": why if why != "error" else None,
            "warm_up": place == 0,
            "batch_size": 2,
            "batch_seconds": 2.0,
        }
        for place, why in enumerate(broken)
    ]


def values(*numbers, images=1):
    return [
        {"prompt_id": f"p{place // images}", "image_number": place % images, "value": number}
        for place, number in enumerate(numbers)
    ]


def losses(figure, baseline, plan, baseline_rows=None, plan_rows=None, images=1):
    tables = {
        (layout.ROWS, "baseline"): baseline_rows or rows(images=images),
        (layout.ROWS, "plan"): plan_rows or rows(images=images),
        (figure, "baseline"): values(*baseline, images=images),
        (figure, "plan"): values(*plan, images=images),
    }
    return ByHand(tables, {figure: 0.1}, images).of("plan", SHARD)


def test_a_loss_is_what_the_baseline_has_more():
    assert losses("prompt_accuracy", (1, 0, 1), (0, 1, 1)).tolist() == [[1, -1, 0]]


def test_ssim_loses_what_it_lacks_to_1():
    assert losses("ssim", (), (1.0, 0.9, 0.5))[0] == pytest.approx([0, 0.1, 0.5])


def test_images_of_a_prompt_are_averaged():
    found = losses("prompt_accuracy", (1, 1, 1, 1, 0, 0), (1, 0, 1, 1, 1, 1), images=2)
    assert found.tolist() == [[0.5, 0, -1]]


def test_an_image_that_the_plan_lacks_has_no_loss_number():
    failed = rows(None, "error", "black")
    found = losses("prompt_accuracy", (1, 1, 1), (1, 1, 1), plan_rows=failed)
    assert found[0, 0] == 0
    assert np.isnan(found[0, 1:]).all()


def test_prompts_that_the_baseline_lacks_are_left_out():
    failed = rows(None, "error", None)
    found = losses("prompt_accuracy", (1, 1, None), (0, 1, 0), baseline_rows=failed)
    assert found.tolist() == [[1]]


def test_time_is_batch_seconds_per_image_without_the_warm_up():
    tables = {(layout.ROWS, "plan"): rows()}
    assert ByHand(tables, {"prompt_accuracy": 0.1}).seconds_per_image("plan", [SHARD]) == 1.0


def test_one_image_per_prompt_makes_a_yes_or_no_loss():
    for images, yes_no in ((1, True), (2, False)):
        (figure,) = loss_figures(settings(images), {"prompt_accuracy": 0.1})
        assert figure.limit.yes_no is yes_no


@pytest.mark.parametrize(
    ("figure", "message"),
    [("speedup", "is not measured"), ("lpips", "is not measured"), ("psnr", "is not defined")],
)
def test_a_figure_without_a_loss_is_refused(figure, message):
    with pytest.raises(UserError, match=message):
        loss_figures(settings(), {figure: 0.1})
