"""Every config in `configs/` is valid, and every arm of it renders on its tiny model."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from tgate_batch import config
from tgate_batch.cli.main import run as command
from tgate_batch.config import Images
from tgate_batch.errors import UserError
from tgate_batch.metrics.features import INCEPTION_FILE
from tgate_batch.models import catalogue
from tgate_batch.prompts.reader import read_prompts
from tgate_batch.records import Prompt, Shard
from tgate_batch.report.summary import schema
from tgate_batch.score import registry

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


LONG = ("hunyuan_image", "plans_sdxl")  # to render, even with a tiny model


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(f, marks=pytest.mark.slow) if f.stem in LONG else f
        for f in FILES
        if f.stem not in ("demo", "plans_demo")
    ],
    ids=ids,
)
def test_every_arm_renders_on_the_tiny_model(file, tmp_path):
    from tgate_batch.models.checkpoint import load_pipeline
    from tgate_batch.models.pipeline_runner import runner_class
    from tgate_batch.render.renderer import Renderer

    run = config.load(file)
    name = run.models[0].name
    tiny = config.Model(name=name, path=str(catalogue.save_tiny(name, tmp_path)))
    small = {"height": 64, "width": 64, "batch_size": 2}
    sampling = catalogue.resolve(name, run.sampling.model_copy(update=small))
    family = catalogue.family_of(name)
    runner = runner_class(family)(load_pipeline(tiny, sampling, "cpu"), family, sampling)
    engine = Renderer(runner, Images(), worker="test")
    shard = Shard(0, tuple(Prompt(f"p{i}", f"number {i}", picture()) for i in range(2)))
    found = {
        arm: [row() for row in list(engine.render(shard, arm, settings))]
        for arm, settings in run.arms.items()
    }
    assert {row.error for rows in found.values() for row in rows} == {None}
    if family.draws == "video":
        assert all(row.video for rows in found.values() for row in rows)


def fetched(name: str, folder: Path) -> None:
    """Puts every file of a shipped config in its place, two rows of the source's own form each."""
    run = config.load(config.find(name))
    if run.prompts.path != "demo":
        _prompts(run, folder)
    if run.score.reference not in (None, "drawn"):
        file = registry.with_extractor_name(run.score.reference, run.score.extractor[0])
        np.savez_compressed(folder / file, mu=np.zeros(2048), sigma=np.eye(2048))


def needed(name: str) -> dict[str, str]:
    """Key -> the file that a shipped config names there, and that does not come with it."""
    run = config.load(config.find(name))
    files = {"prompts.path": run.prompts.path, "score.reference": run.score.reference}
    return {key: file for key, file in files.items() if file not in ("demo", "drawn", None)}


@pytest.mark.parametrize(
    "name", [name for name in config.names() if name not in ("demo", "plans_demo")]
)
def test_dry_run_without_the_files_says_how_to_get_them_all(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as told:
        command(["render", "--config", name, "--dry-run"])
    assert needed(name)
    for key, file in needed(name).items():
        place = registry.with_extractor_name(file, "inception")
        problem = f"{key}: {place} {{}}: {config.source_of(file)}"
        ways = {problem.format("is not here"), problem.format("does not exist")}
        assert ways & set(told.value.problems)
    asks = config.load(config.find(name)).score
    if asks.reference is not None and "inception" in asks.extractor:
        weights = [one for one in told.value.problems if INCEPTION_FILE in one]
        assert len(weights) == 1


QUICK = ("demo", "sd15")  # whose MACs are counted in a moment


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in config.names()
    ],
)
def test_dry_run_with_the_files_passes(name, tmp_path, monkeypatch, capsys, torch_home):
    monkeypatch.setenv("TORCH_HOME", torch_home)
    monkeypatch.chdir(tmp_path)
    fetched(name, tmp_path)
    assert command(["render", "--config", name, "--dry-run"]) == 0
    assert "estimate: " in capsys.readouterr().out


def test_command_that_makes_the_reference_makes_the_one_that_all_configs_name():
    (how,) = {
        config.source_of(spec)
        for spec in (config.load(config.find(name)).score.reference for name in config.names())
        if spec not in (None, "drawn")
    }
    words = how.partition("tgate-batch ")[2].partition(" makes it")[0].split()
    assert words == ["reference", "--config", "coco10k", "--from", "val2014/"]
    made = config.load(config.find("coco10k")).score
    assert (
        registry.with_extractor_name(made.reference, made.extractor[0]) == "coco2014-inception.npz"
    )


def test_command_that_lists_pictures_writes_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("one.png", "two.png"):
        (tmp_path / "pictures" / name).write_bytes(picture())
    how = config.source_of("pictures.csv")
    listing = how.partition(", e.g. ")[2]
    subprocess.run(listing, shell=True, check=True)
    found = list(read_prompts(config.load(config.find("svd")).prompts))
    assert [prompt.image for prompt in found] == [picture()] * 2
    assert len({prompt.id for prompt in found}) == 2


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
    if run.prompts.image_column:
        (folder / "red.png").write_bytes(picture())
        file.write_text(f"{run.prompts.image_column}\nred.png\nred.png\n")
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
