"""Every config in `configs/` is valid, and every arm of it renders on its tiny model."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tgate_batch import config
from tgate_batch.config import Images
from tgate_batch.models import catalogue
from tgate_batch.records import Prompt, Shard
from tgate_batch.report.summary import schema

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.yaml"))


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(stream, "png")
    return stream.getvalue()


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_config_is_valid_and_its_plans_fit_its_steps(file):
    run = config.load(file)
    for model in run.models:
        steps = catalogue.resolve(model.name, run.sampling).steps
        for arm in run.arms.values():
            if arm.plan is not None:
                arm.plan.check(steps)
    assert run.baseline == "baseline"


@pytest.mark.parametrize("file", [f for f in FILES if f.stem != "demo"], ids=ids)
def test_every_arm_renders_on_the_tiny_model(file, tmp_path):
    from tgate_batch.models.checkpoint import load
    from tgate_batch.models.runner import PipelineRunner
    from tgate_batch.render.shard import Renderer

    run = config.load(file)
    name = run.models[0].name
    tiny = config.Model(name=name, path=str(catalogue.save_tiny(name, tmp_path)))
    small = {"height": 64, "width": 64, "batch_size": 2}
    sampling = catalogue.resolve(name, run.sampling.model_copy(update=small))
    family = catalogue.family_of(name)
    runner = PipelineRunner(load(tiny, sampling, "cpu"), family, sampling)
    engine = Renderer(runner, Images(), worker="test")
    shard = Shard(0, tuple(Prompt(f"p{i}", f"number {i}", picture()) for i in range(2)))
    found = {
        arm: [row() for row in list(engine.render(shard, arm, settings))]
        for arm, settings in run.arms.items()
    }
    assert {row.error for rows in found.values() for row in rows} == {None}
    if family.draws == "video":
        assert all(row.video for rows in found.values() for row in rows)


SMALL = ["prompts.limit=2", "prompts.shard_size=2", "sampling.batch_size=2", "workers.max=1"]
AT_HOME = [  # what a machine without a GPU, and without the reference statistics, leaves out
    "sampling.height=64",
    "sampling.width=64",
    "workers.gpus_each=0",
    "score.reference=null",
    "score.weights={}",
    "thresholds={}",
]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=ids)
def test_config_runs_through_the_job_to_a_report(file, tmp_path):
    run = config.load(file)
    settings = list(SMALL)
    if file.stem != "demo":
        name = run.models[0].name
        tiny = catalogue.save_tiny(name, tmp_path / "tiny")
        settings += [f"models=[{{name: {name}, path: {tiny}}}]", *AT_HOME]
        settings += [f"prompts.path={_prompts(run, tmp_path)}"]
    options = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [
            sys.executable,
            "jobs/render.py",
            "--config",
            file,
            "--output",
            tmp_path / "out",
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    jsonschema.validate(report, schema())
    arms = report["arms"]
    assert {arm["arm"]: (arm["images"], arm["errors"]) for arm in arms} == dict.fromkeys(
        run.arms, (2, 0)
    )


def _prompts(run: config.Config, folder: Path) -> Path:
    """Two prompts in the format and the columns that the config reads."""
    file = folder / run.prompts.path
    if file.suffix == ".parquet":
        table = pa.table({"id": ["a", "b"], run.prompts.image_column: [picture()] * 2})
        pq.write_table(table, file)
        return file
    if file.suffix == ".json":
        captions = [("a", "a red cat"), ("b", "a blue dog")]
        rows = [{"id": name, "image_id": 1, "caption": caption} for name, caption in captions]
        file.write_text(json.dumps({"images": [], "annotations": rows}))
        return file
    separator = "\t" if file.suffix == ".tsv" else ","
    rows = [("id", "caption"), ("a", "a red cat"), ("b", "a blue dog")]
    file.write_text("".join(separator.join(row) + "\n" for row in rows))
    return file
