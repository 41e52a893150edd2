"""Which metrics a run measures; and one more, with weights, from a module of one's own."""

import hashlib
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tgate_batch.config import Score, Thresholds
from tgate_batch.errors import UserError
from tgate_batch.report import result_table, thresholds
from tgate_batch.score import registry

TOY = '''
"""How much brighter than a level, which is the metric's weights, an image is on average."""

import numpy as np

from tgate_batch.metrics.base import Column, PictureMetric
from tgate_batch.metrics.weights import load_weights


def load(weights, device):
    level = float(load_weights(weights)["level"])
    return lambda images, prompts, baselines=None: np.array([np.mean(i) - level for i in images])


METRIC = PictureMetric(
    name="brightness",
    column=Column(
        name="brightness",
        heading="brightness",
        pattern="{:.1f}",
        better="higher",
        tables=("images",),
        change_heading="brightness change [95% CI]",
    ),
    load=load,
    weights="level",
    version=3,
)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy metric's module, registered by name; its weights are a level of 100."""
    monkeypatch.setattr(registry, "METRICS", list(registry.METRICS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_brightness", raising=False)
    (tmp_path / "toy_brightness.py").write_text(TOY)
    torch.save({"level": torch.tensor(100.0)}, tmp_path / "level.pth")
    registry.register("toy_brightness")
    return str(tmp_path / "level.pth")


def names(score: Score, has_baseline: bool = True) -> list[str]:
    return [metric.name for metric in registry.wanted(score, has_baseline)]


def test_metrics_come_in_the_order_of_the_tables():
    assert registry.known() == ("psnr", "ssim", "lpips", "clip_score", "prompt_accuracy")


def test_metric_with_weights_is_wanted_where_they_are_given():
    assert names(Score()) == ["psnr", "ssim", "prompt_accuracy"]
    given = Score(weights={"lpips": "a.pth", "clip": "some/clip"})
    assert names(given) == ["psnr", "ssim", "lpips", "clip_score", "prompt_accuracy"]


def test_run_without_a_baseline_compares_with_none():
    given = Score(weights={"lpips": "a.pth", "clip": "some/clip"})
    assert names(given, has_baseline=False) == ["clip_score", "prompt_accuracy"]


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ({"weights": {"lpisp": "a.pth"}}, "unknown key 'lpisp'; one of: lpips, clip, extractor"),
        ({"weights": {"lpips": "no.pth"}}, "weights.lpips: no.pth does not exist; give AlexNet's"),
        ({"lpips": "no.pth"}, "weights.lpips: no.pth does not exist"),
        ({"weights": {"extractor": "no.pth"}}, "weights.extractor: no.pth does not exist"),
        ({"extractor": "incepton"}, "unknown extractor 'incepton'"),
    ],
)
def test_what_scoring_would_miss_is_told_in_one_line(score, said):
    with pytest.raises(UserError) as caught:
        registry.check(Score(**score))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "score",
    [
        {},
        {"reference": "drawn", "extractor": "inception"},
        {"weights": {"clip": "openai/clip-vit-base-patch32", "lpips": "s3://bucket/alex.pth"}},
    ],
)
def test_weights_that_are_no_local_file_are_not_looked_up(score):
    registry.check(Score(**score))


def test_what_cannot_be_loaded_is_a_problem_and_the_others_are_loaded(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK")
    score = Score(reference="drawn", weights={"lpips": str(tmp_path / "cut.pth")})
    loaded = registry.load_metrics(score, True, "cpu")
    assert [extractor.name for extractor in loaded.extractors] == ["efficientnet-lite0"]
    assert [metric.name for metric, _ in loaded.measures] == ["psnr", "ssim", "prompt_accuracy"]
    (problem,) = loaded.problems
    assert "cut.pth cannot be read" in problem


def test_run_without_a_reference_loads_no_extractor():
    assert registry.load_metrics(Score(extractor=("inception",)), True, "cpu").extractors == ()


def test_metric_of_ones_own_is_checked_loaded_and_measures(toy):
    score = Score(weights={"level": toy})
    registry.check(score)
    loaded = registry.load_metrics(score, False, "cpu")
    metric, measure = loaded.measures[-1]
    assert (metric.name, metric.version) == ("brightness", 3)
    greys = [Image.new("RGB", (4, 4), (level,) * 3) for level in (100, 130)]
    assert measure(greys, ["", ""]).tolist() == [0.0, 30.0]


def test_metric_of_ones_own_has_the_identity_of_its_weights(toy):
    with open(toy, "rb") as file:
        expected = hashlib.sha256(file.read()).hexdigest()
    assert registry.METRICS[-1].fingerprint(toy) == expected


def test_metric_of_ones_own_has_columns_and_a_threshold(toy):
    change = {"brightness": {"value": -2.0, "low": -3.0, "high": -1.0}}
    arm = {"model": "demo", "arm": "tgate", "brightness": 30.0, "change": change}
    assert result_table.rows([arm], "pictures") == [
        ["model", "arm", "brightness", "brightness change [95% CI]"],
        ["demo", "tgate", "30.0", "-2.00 [-3.00, -1.00]"],
    ]
    (judged,) = thresholds.judge(arm, None, Thresholds.model_validate({"brightness": {"min": 25}}))
    assert (judged["passed"], judged["margin"]) == (True, 5.0)


def test_metric_is_registered_once(toy):
    before = list(registry.METRICS)
    registry.register("toy_brightness")
    assert before == registry.METRICS


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "no metric can be had from module 'toy_faulty'"),
        ("x = 1", "no attribute 'METRIC'"),
        ("METRIC = 1", "METRIC of module 'toy_faulty' is a int"),
        (TOY.replace("version=3", "version=4"), "another metric is named"),
    ],
)
def test_module_that_cannot_be_registered_is_told_in_one_line(
    toy, source, said, tmp_path, monkeypatch
):
    monkeypatch.delitem(sys.modules, "toy_faulty", raising=False)
    if source is not None:
        (tmp_path / "toy_faulty.py").write_text(source)
    with pytest.raises(UserError) as caught:
        registry.register("toy_faulty")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_under_another_name_is_a_fault_of_the_metric():
    psnr = registry.METRICS[0]
    with pytest.raises(ValueError, match=r"'other'.*'psnr'"):
        type(psnr)(name="other", column=psnr.column, load=psnr.load)


def test_config_is_checked_and_a_report_made_without_torch():
    code = (
        "import sys; from tgate_batch.config import Score; from tgate_batch.score import metrics; "
        "from tgate_batch.report import table, thresholds; "
        "metrics.check(Score()); table.rows([], 'brief'); thresholds.check({}); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchmetrics', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
