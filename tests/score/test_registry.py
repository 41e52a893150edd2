"""Which metrics a run measures; and one more, with weights, from a module of one's own."""

import hashlib
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from PIL import Image

from tgate_batch.config import Score, Thresholds
from tgate_batch.errors import UserError
from tgate_batch.metrics import base
from tgate_batch.report import gallery, result_table, thresholds, verdict
from tgate_batch.report.columns import columns
from tgate_batch.score import registry

TOY = '''
"""How much brighter than a level, which is the metric's weights, an image is on average."""

import numpy as np

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.weights import load_weights


def load(weights, device):
    level = float(load_weights(weights)["level"])
    return lambda images, prompts, baselines=None: np.array([np.mean(i) - level for i in images])


METRIC = ImageMetric(
    name="brightness",
    heading="brightness",
    pattern="{:.1f}",
    better="higher",
    change_heading="brightness change [95% CI]",
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


WITH_WEIGHTS = {metric.weights: "a" for metric in registry.METRICS if metric.weights}


def test_metrics_come_in_the_order_of_their_modules():
    listed = [import_module(module).METRIC for module in registry.MODULES]
    assert listed == registry.METRICS
    assert registry.known() == tuple(metric.name for metric in listed)


def test_metric_with_weights_is_wanted_where_they_are_given():
    alone = [metric.name for metric in registry.METRICS if metric.weights is None]
    assert names(Score()) == alone
    assert names(Score(weights=WITH_WEIGHTS)) == list(registry.known())
    given = names(Score(weights={"lpips": "a.pth"}))
    assert set(given) - set(alone) == {"lpips"}


def test_run_without_a_baseline_compares_with_none():
    paired = {metric.name for metric in registry.METRICS if metric.needs_baseline}
    given = names(Score(weights=WITH_WEIGHTS), has_baseline=False)
    assert given == [name for name in registry.known() if name not in paired]
    assert {"psnr", "ssim", "lpips"} <= paired


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (
            {"weights": {"lpisp": "a.pth"}},
            "'lpisp'. Fix: use one of: lpips, clip, extractor",
        ),
        (
            {"weights": {"lpips": "no.pth"}},
            "lpips: no.pth does not exist. Fix: give AlexNet's",
        ),
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
    assert [metric.name for metric, _ in loaded.measures] == names(Score())
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
    assert result_table.rows([arm], "images") == [
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
        (None, "module 'toy_faulty' provides no metric"),
        ("x = 1", "no attribute 'METRIC'"),
        ("METRIC = 1", "METRIC of module 'toy_faulty' is a int"),
        (TOY.replace("version=3", "version=4"), "like another metric"),
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


def test_every_metric_has_a_column_of_its_name(toy):
    by_name = {column.name: column for column in columns()}
    for metric in registry.METRICS:
        column = by_name[metric.name]
        assert (column.heading, column.better) == (metric.heading, metric.better)
        assert column.format(0.5) == metric.pattern.format(0.5)


def test_new_metric_enters_neither_the_verdict_nor_the_order_unless_it_is_a_headline(
    toy, monkeypatch
):
    assert not registry.METRICS[-1].headline
    change = {"brightness": {"value": -2.0, "low": -3.0, "high": -1.0}}
    arm = {"model": "demo", "arm": "tgate", "brightness": 30.0, "change": change}
    values = {("tgate", "brightness"): {("p", 0): 30.0}, ("base", "brightness"): {("p", 0): 32.0}}
    others = {(name, m.name): {} for name in ("tgate", "base") for m in registry.METRICS[:-1]}

    def seen() -> tuple[list[str], float | None]:
        cell = gallery.GalleryCell("tgate")
        gallery._add_figures(cell, ("p", 0), values | others, "base")
        assert cell.figures == ["brightness 30.0 (-2.00)"]
        return [column.name for column in verdict.changes(arm, [arm])], cell.worse

    assert seen() == ([], None)
    registry.METRICS[-1] = replace(registry.METRICS[-1], headline=True)
    assert seen() == (["brightness_change"], 2.0)


def test_example_of_the_contract_is_a_metric(toy, tmp_path, monkeypatch):
    code = textwrap.dedent(base.__doc__.split("::\n", 1)[1].split("\nThe module")[0])
    code = code.replace('"brightness"', '"mean"')
    (tmp_path / "toy_example.py").write_text(code)
    monkeypatch.delitem(sys.modules, "toy_example", raising=False)
    measure = registry.register("toy_example").load(None, "cpu")
    assert measure([Image.new("RGB", (2, 2), (30, 60, 90))], [""]).tolist() == [60.0]


def test_config_is_checked_and_a_report_made_without_torch():
    code = (
        "import sys; from tgate_batch.config import Score; from tgate_batch.score import registry; "
        "from tgate_batch.report import result_table, thresholds; "
        "registry.check(Score()); result_table.rows([], 'brief'); thresholds.check({}); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchmetrics', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
