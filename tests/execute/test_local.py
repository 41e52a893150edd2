"""A run in this process, without Ray; and a family and a metric of one's own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tgate_batch import config, workflow
from tgate_batch.execute import plugins
from tgate_batch.models import catalogue
from tgate_batch.score import metrics

ROOT = Path(__file__).parents[2]

FAMILY = '''
"""A family of its own: Stable Diffusion 1.5 under another name, tiny."""
from dataclasses import replace

from tgate_batch.models import sd

row = next(entry for entry in sd.FAMILY.entries if entry.name == "sd15")
FAMILY = replace(
    sd.FAMILY,
    entries=(replace(row, name="toy", steps=3, height=32, width=32, architecture=None),),
)
'''

METRIC = '''
"""How dark a picture is beside a reference brightness, which is the metric's weights."""
import numpy as np

from tgate_batch.metrics.entry import Column, PictureMetric


def load(weights, device):
    target = float(open(weights).read())

    def measure(images, prompts, baselines=None):
        return np.array([target - np.asarray(image.convert("L")).mean() for image in images])

    return measure


METRIC = PictureMetric(
    name="darkness",
    column=Column("darkness", "darkness", "{:.3f}", better="lower", tables=("pictures", "brief")),
    load=load,
    weights="darkness",
)
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a temporary module that can be imported, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(catalogue.CATALOGUE), list(metrics.METRICS)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write
    catalogue.CATALOGUE.clear()
    catalogue.CATALOGUE.update(before[0])
    metrics.METRICS[:] = before[1]


def local(settings, **sections) -> config.Config:
    return config.parse(
        {**settings, "workers": {"executor": "local"}, "score": {"reference": None}, **sections}
    )


def report(output) -> dict:
    return json.loads((Path(output) / "report" / "report.json").read_text())


def test_family_in_one_module_goes_through_the_whole_way(module, settings, tmp_path):
    name = module("toy_family", FAMILY)
    plugins.register([name])
    folder = catalogue.save_tiny("toy", tmp_path / "toy")
    settings = {**settings, "models": [{"name": "toy", "path": str(folder)}], "plugins": [name]}
    settings["sampling"] = {"batch_size": 5}
    assert workflow.render(local(settings, arms={"baseline": {}, "tgate": {"gate_step": 2}})) == 0
    arms = report(settings["output"])["arms"]
    assert [(arm["model"], arm["images"], arm["errors"]) for arm in arms] == [("toy", 10, 0)] * 2
    assert 0 < arms[1]["macs_per_image"] < arms[0]["macs_per_image"]


@pytest.mark.parametrize(("bound", "code"), [(255.0, 0), (-255.0, 3)])
def test_metric_in_one_module_is_measured_shown_and_judged(module, settings, tmp_path, bound, code):
    name = module(f"toy_metric_{code}", METRIC)
    plugins.register([name])
    weights = tmp_path / "brightness.txt"
    weights.write_text("100")
    run = local(
        settings,
        plugins=[name],
        score={"reference": None, "weights": {"darkness": str(weights)}},
        thresholds={"darkness": {"max": bound}},
    )
    assert workflow.render(run) == code
    found = report(settings["output"])
    assert all(-155 <= arm["darkness"] <= 100 for arm in found["arms"])
    assert found["arms"][1]["thresholds"][0]["threshold"] == "darkness"
    page = (Path(settings["output"]) / "report" / "index.html").read_text()
    assert re.search(r"<th[^>]*>[^<]*(<[^>]*>)*\s*darkness", page)
    before = [arm["darkness"] for arm in found["arms"]]
    weights.write_text("101")  # other weights: measured again, and no picture is drawn again
    workflow.render(run)
    after = [arm["darkness"] for arm in report(settings["output"])["arms"]]
    assert after == pytest.approx([value + 1 for value in before])


def test_local_run_never_imports_ray(settings, tmp_path):
    file = tmp_path / "run.yaml"
    local_settings = {**settings, "workers": {"executor": "local"}, "score": {"reference": None}}
    file.write_text(yaml.safe_dump(local_settings))
    code = (
        "import runpy, sys\n"
        "sys.argv = ['render.py', '--config', sys.argv[1]]\n"
        "try: runpy.run_path('jobs/render.py', run_name='__main__')\n"
        "finally: print('ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_no_line_of_a_library_appears_in_a_local_run(settings, captions, tmp_path):
    captions.write_text("id,caption\nc0," + "a tent by the sea " * 40 + "\n")  # transformers warns
    file = tmp_path / "run.yaml"
    local_settings = {**settings, "workers": {"executor": "local"}, "score": {"reference": None}}
    file.write_text(yaml.safe_dump(local_settings))
    done = subprocess.run(
        [sys.executable, "-m", "tgate_batch", "render", "--config", str(file), "--log", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert all(json.loads(line)["event"] for line in done.stdout.splitlines())
