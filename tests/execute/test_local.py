"""A run in this process, without Ray; and a family and a metric of one's own."""

import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import yaml

from tgate_batch import config, workflow
from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.execute import plugins, rendering
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.scoring import measure_pending
from tgate_batch.execute.worker import Worker
from tgate_batch.metrics.features import load_extractor
from tgate_batch.metrics.frechet import stream
from tgate_batch.models import catalogue
from tgate_batch.models.fingerprint import fingerprint
from tgate_batch.output import run as runs
from tgate_batch.score import registry
from tgate_batch.score.conclusion import ConcludeOrder
from tgate_batch.score.extractor_facts import ExtractorFacts
from tgate_batch.score.measurement_plan import MeasurementPlan
from tgate_batch.storage import Folder

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

from tgate_batch.metrics.base import ImageMetric


def load(weights, device):
    target = float(open(weights).read())

    def measure(images, prompts, baselines=None):
        return np.array([target - np.asarray(image.convert("L")).mean() for image in images])

    return measure


METRIC = ImageMetric(
    name="darkness",
    heading="darkness",
    pattern="{:.3f}",
    load=load,
    better="lower",
    brief=True,
    weights="darkness",
)
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a temporary module that can be imported, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(catalogue.CATALOGUE), list(registry.METRICS)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write
    catalogue.CATALOGUE.clear()
    catalogue.CATALOGUE.update(before[0])
    registry.METRICS[:] = before[1]


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


def weights_of(folder: Path) -> Path:
    return next((folder / "unet").glob("*.safetensors"))


def with_one_weight_changed(folder: str, copy: Path) -> Path:
    """A copy of a checkpoint's folder in which one number of the denoiser is another."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, copy)
    tensors = load_file(weights_of(copy))
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1
    save_file(tensors, weights_of(copy), metadata={"format": "pt"})
    return copy


def test_a_worker_refuses_weights_that_are_not_those_it_was_promised(settings, tiny, tmp_path):
    """The checkpoint is replaced after the run was prepared, as on a machine with another copy."""
    there = Path(shutil.copytree(tiny, tmp_path / "there"))
    other = with_one_weight_changed(tiny, tmp_path / "other")
    run = local({**settings, "models": [{"name": "sd15", "path": str(there)}]})
    prepared = runs.prepare(run)
    runs.begin_run(prepared)
    pool = rendering.render_pool(prepared, runs.pending(prepared))
    shutil.copy(weights_of(other), weights_of(there))
    digests = [fingerprint(Model(name="sd15", path=str(f)), "float32") for f in (tiny, other)]
    with pytest.raises(UserError) as told:
        list(LocalExecutor(run, prepared.folder).run(pool))
    (line,) = str(told.value).splitlines()
    for part in (socket.gethostname(), str(there), *(digest[:16] for digest in digests)):
        assert part in line
    assert not list(Path(settings["output"]).rglob("shard-*.parquet"))


def test_a_worker_compares_again_for_an_order_after_it_has_loaded_a_model(settings, tiny, tmp_path):
    run = local(settings)
    prepared = runs.prepare(run)
    runs.begin_run(prepared)
    worker = Worker(run, prepared.folder)
    worker.load(run.models[0])
    (task, *_), *_ = rendering._groups(prepared, runs.pending(prepared), {}, lambda *_: None)
    with pytest.raises(UserError, match="has other weights at"):
        list(worker.render(replace(task.order(), checkpoint="0" * 64)))
    assert [said.images for said in worker.render(task.order())] == [4]


def test_weights_of_a_metric_that_are_not_those_promised_measure_nothing(
    module, settings, tmp_path
):
    """Other weights lie there when a worker loads them; with the right ones scoring goes on."""
    name = module("toy_promised", METRIC)
    plugins.register([name])
    weights = tmp_path / "brightness.txt"
    weights.write_text("100")
    score = {"reference": None, "weights": {"darkness": str(weights)}}
    run = local(settings, plugins=[name], score=score, arms={"baseline": {}})
    assert workflow.render(run) == 0
    before = report(settings["output"])["arms"][0]["darkness"]
    shutil.rmtree(Path(settings["output"]) / "measured" / "darkness")
    held = runs.load_run(settings["output"])
    wanted = MeasurementPlan.of(held)
    weights.write_text("2000")
    executor = LocalExecutor(run, held.folder)
    (problem,) = measure_pending(held, wanted, executor)
    digests = [sha256(text).hexdigest()[:16] for text in (b"100", b"2000")]
    for part in ("darkness", socket.gethostname(), str(weights), *digests):
        assert part in problem
    assert not list(Path(settings["output"]).glob("measured/darkness/**/*.parquet"))
    weights.write_text("100")
    assert workflow.score(run) == 0
    assert report(settings["output"])["arms"][0]["darkness"] == before


def test_a_reference_that_changed_since_the_driver_read_it_is_refused(settings, tmp_path):
    kind = load_extractor("efficientnet-lite0")
    file = tmp_path / "reference.npz"
    rows = np.random.default_rng(0).normal(size=(4, kind.dimensions))
    stream([rows.astype(np.float32)]).save(file.open("wb"))
    facts = ExtractorFacts.of(kind)
    order = ConcludeOrder(None, (), None, {facts.name: (str(file), "0" * 64)}, (facts,))
    run = local(settings)
    with pytest.raises(UserError, match=r"reference: .* has other weights at .*reference\.npz"):
        list(Worker(run, Folder(settings["output"])).conclude(order))
