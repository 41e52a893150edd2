"""Scoring what a run's folder holds, without rendering it: images are drawn, not denoised."""

import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from tgate_batch import config, workflow
from tgate_batch.demo import scenes
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.scoring import measure_pending
from tgate_batch.metrics.cmmd import cmmd
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output import run as runs
from tgate_batch.records import ImageRecord
from tgate_batch.score import measure
from tgate_batch.score.measurement_plan import MeasurementPlan

ROOT = Path(__file__).parent
SHARDS, EACH = 3, 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 captions, rendered and measured; `other` drew three of them all black."""
    tmp_path = tmp_path_factory.mktemp("finished")
    captions = [str(scene) for scene in scenes.random_scenes(SHARDS * EACH, 7, held_out=True)]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    settings = {
        "models": ["demo"],
        "prompts": {"path": str(tmp_path / "captions.txt"), "shard_size": EACH},
        "arms": {"baseline": {}, "other": {"gate_step": 5}},
        "workers": {"executor": "local"},
        "score": {"reference": "drawn"},
        "output": str(tmp_path / "out"),
    }
    run = workflow.prepare(config.parse(settings))
    runs.begin_run(run)
    for plan in run.shards:
        for arm in run.config.arms:
            draw(run, arm, plan)
    with LocalExecutor(run.config, run.folder) as executor:
        measure_pending(run, MeasurementPlan.of(run), executor)
    return run


def draw(run, arm, plan):
    """Writes a shard's file with drawings of its captions."""
    shard = prompt_store.load_shard(run.folder, plan)
    records = [
        record(prompt, seed=int(prompt.id[:8]), black=arm == "other" and number == 0)
        for number, prompt in enumerate(shard.prompts)
    ]
    name = layout.shard_file(layout.images("demo", arm), plan.index)
    identity = layout.file_identity(run.provenance_of("demo", arm), plan.digest)
    parquet.write_records(run.folder, name, "demo", arm, records, identity, {"macs_per_image": "7"})


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(str(finished.folder), tmp_path / "run")
    return runs.load_run(str(tmp_path / "run"))


def record(prompt, seed, black):
    picture = scenes.draw(prompt.text, seed)
    if black:
        picture = picture.point(lambda _: 0)
    stream = io.BytesIO()
    picture.save(stream, "png")
    return ImageRecord(prompt.id, 0, prompt.text, seed, "ok", image=stream.getvalue())


def scored(run, code=0, **sections) -> dict[str, dict]:
    """Arm -> its scores, after the whole way from measuring to the report."""
    changed = config.parse({**run.config.model_dump(), **sections})
    assert workflow.score(changed) == code
    return {arm: json.loads(run.folder.read(layout.scores("demo", arm))) for arm in changed.arms}


def test_statistics_on_disk_give_pytorch_fid_our_distance(run):
    first = scored(run)["other"]
    arms = {}
    for arm in ("baseline", "other"):
        name = layout.statistics("efficientnet-lite0", "demo", arm)
        with np.load(run.folder.path(name)) as archive:
            arms[arm] = archive["mu"], archive["sigma"]
    again = scored(
        run,
        score={
            "reference": run.folder.path(
                layout.statistics("efficientnet-lite0", "demo", "baseline")
            )
        },
    )
    theirs = calculate_frechet_distance(*arms["other"], *arms["baseline"])
    assert again["other"]["fd"] == pytest.approx(theirs, rel=1e-4)
    assert again["baseline"]["fd"] == pytest.approx(0, abs=1e-6)
    assert first["reference"]["name"] == "drawn"


def test_broken_pictures_are_listed_and_kept_out(run):
    found = scored(run)["other"]
    assert found["images"] == 12
    assert found["broken"] == 3
    assert found["distance_label"] == "FD-efficientnet-lite0-9"
    assert {row["broken"] for row in found["broken_rows"]} == {"all black"}


def test_broken_pictures_count_in_no_figure(run):
    found = scored(run)
    assert found["baseline"]["prompt_accuracy"] == found["other"]["prompt_accuracy"] == 1
    change = found["other"]["change"]["prompt_accuracy"]
    assert (change["value"], change["count"]) == (0, 9)
    assert found["other"]["prompts_compared"] == 9


def test_distance_of_few_pictures_is_not_compared(run):
    found = scored(run)["other"]
    assert found["distance_change"] is None
    reason = "not comparable: 0.01 images per dimension, 3,840 needed"
    assert found["withheld"]["distance_change"] == reason


def damage(run, name):
    with open(run.folder.path(name), "r+b") as stream:
        stream.truncate(100)


PICTURES = layout.shard_file(layout.images("demo", "other"), 1)


def forget_measurements(run):
    for name in (*run.folder.names(layout.MEASURED), *run.folder.names(layout.FEATURES)):
        run.folder.delete(name)


def test_damaged_shard_is_told_the_others_are_scored_and_the_next_run_draws_it(run, capsys):
    forget_measurements(run)
    damage(run, PICTURES)
    found = scored(run, 4)["other"]
    assert found["images"] == 8
    assert found["distance_label"] == "FD-efficientnet-lite0-6"
    said = capsys.readouterr().err
    assert f"{PICTURES} is damaged" in said
    assert "demo other: 1 of 3 shards are missing or damaged (first: 1)" in said
    assert runs.pending(run) == {"demo": {1: ("other",)}}


def test_pictures_of_other_settings_are_not_scored(run, capsys):
    forget_measurements(run)
    plan = run.shards[1]
    rows = [ImageRecord(str(i), 0, "x", 0, "ok", image=b"") for i in range(EACH)]
    parquet.write_records(run.folder, PICTURES, "demo", "other", rows, f"not {plan.digest}")
    assert scored(run, 4)["other"]["images"] == 8
    assert "was made of other settings or prompts" in capsys.readouterr().err


def test_damaged_baseline_leaves_paired_figures_of_its_shard_for_the_next_run(run):
    forget_measurements(run)
    damage(run, layout.shard_file(layout.images("demo", "baseline"), 1))
    scored(run, 4)
    stand = run.folder.names(layout.measured("psnr", "demo", "other"))
    assert [layout.folder_and_shard(name)[1] for name in stand] == [0, 2]
    assert len(run.folder.names(layout.measured("rows", "demo", "other"))) == 3


def test_damaged_measurement_is_measured_again(run, capsys):
    whole = scored(run)["other"]
    run.folder.delete_all(layout.SUMS)
    damage(run, layout.shard_file(layout.measured("psnr", "demo", "other"), 1))
    scored(run, 4)
    assert "tgate-batch score measures it again" in capsys.readouterr().err
    assert scored(run)["other"]["paired"] == whole["paired"]


class Counting:
    """An extractor that counts its images."""

    name, label, note, sha256, dimensions = "counting", "FD-counting", None, "0", 1
    seen: ClassVar[Counter] = Counter()

    def __init__(self, path=None, device="cpu"):
        pass

    def __call__(self, images):
        self.seen.update(image.tobytes() for image in images)
        return np.array([[np.asarray(image).mean()] for image in images], np.float32)


def test_each_file_is_opened_once_each_picture_decoded_once_each_feature_computed_once(
    run, monkeypatch
):
    forget_measurements(run)
    opened, decoded = Counter(), Counter()
    open_, decode = type(run.folder).open, measure.decode_image
    monkeypatch.setattr(
        type(run.folder), "open", lambda self, name: opened.update([name]) or open_(self, name)
    )
    monkeypatch.setattr(measure, "decode_image", lambda b: decoded.update([b]) or decode(b))
    monkeypatch.setattr(workflow, "_report", lambda run: 0)  # the page shows images again
    Counting.seen.clear()
    np.savez(run.folder.path("reference.npz"), mu=np.zeros(1), sigma=np.eye(1))
    monkeypatch.syspath_prepend(str(ROOT))
    scored(
        run,
        score={
            "reference": run.folder.path("reference.npz"),
            "extractor": f"{__name__}:Counting",
        },
    )
    rows = [name for name in opened if name.startswith((layout.IMAGES, layout.MEASURED))]
    assert len([name for name in rows if name.startswith(layout.IMAGES)]) == 2 * SHARDS
    beside = {name for name in rows if "/baseline/" in name and name.startswith(layout.MEASURED)}
    once = {name: opened[name] for name in rows if name not in beside}
    assert once == dict.fromkeys(once, 1)
    assert {opened[name] for name in beside} == {2}  # for itself, and beside the other arm
    features = [name for name in opened if name.startswith(layout.FEATURES)]
    assert {name: opened[name] for name in features} == {
        name: 2 if "/baseline/" in name else 1 for name in features
    }  # the baseline's again for the images that are black in the other arm
    # nine drawings are in both arms with the same bytes, three stand beside a black image
    assert sum(decoded.values()) == 2 * SHARDS * EACH
    assert sum(Counting.seen.values()) == 2 * SHARDS * EACH - SHARDS  # but for the black ones


def test_other_weights_of_one_metric_redo_that_metric_alone(run, tmp_path, monkeypatch):
    from tgate_batch.score import registry

    entry = next(metric for metric in registry.METRICS if metric.name == "prompt_accuracy")
    stamps = measured_at(run)
    monkeypatch.setattr(
        registry, "METRICS", [dataclasses.replace(entry, version=2), *registry.METRICS[:-1]]
    )
    scored(run)
    changed = {name for name, stamp in measured_at(run).items() if stamps.get(name) != stamp}
    assert {name.split("/")[1] for name in changed} == {"prompt_accuracy"}
    assert len(changed) == 2 * SHARDS


def measured_at(run) -> dict[str, int]:
    names = (*run.folder.names(layout.MEASURED), *run.folder.names(layout.IMAGES))
    return {name: os.stat(run.folder.path(name)).st_mtime_ns for name in names}


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        ({"prompt_accuracy": {"min": 0.5}, "errors_percent": {"max": 0}}, 0, "pass"),
        ({"prompt_accuracy": {"min": 1.1}}, 3, "FAIL prompt_accuracy 1 must be at least 1.1"),
        ({"broken_percent": {"max": 10}}, 3, "FAIL broken_percent 25 must be at most 10, missed"),
        ({"clip_score": {"min": 1}}, 3, "FAIL clip_score was not measured"),
    ],
)
def test_threshold_decides_the_exit_code_and_says_by_how_much(run, capsys, limits, code, said):
    scored(run, code, thresholds=limits)
    assert said in capsys.readouterr().out
    report = json.loads(run.folder.read(layout.REPORT_JSON))
    assert report["passed"] is (code == 0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"reference": "nosigma.npz"}, "has no sigma"),
        ({"reference": "small.npz"}, "has 5 dimensions, but efficientnet-lite0 has 1280"),
        ({"reference": "black"}, "no usable images"),
        ({"reference": "drawn", "extractor": "inception", "extractor_path": "cut.pth"}, "cut.pth"),
        ({"reference": "drawn", "lpips": "cut.pth"}, "cut.pth"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_the_other_scores_stand(
    run, tmp_path, capsys, setting, said
):
    np.savez(tmp_path / "nosigma.npz", mu=np.zeros(1280))
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "black").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / "black" / f"{number}.png")
    setting = {
        key: value if value in ("drawn", "inception") else str(tmp_path / value)
        for key, value in setting.items()
    }
    found = scored(run, 2, score=setting)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert found["baseline"]["prompt_accuracy"] == 1


def test_further_extractors_have_figures_of_their_own(run, tmp_path):
    dino = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, mlp_ratio=1
    )
    Dinov2Model(dino).save_pretrained(tmp_path / "dino")
    clip = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    CLIPVisionModelWithProjection(clip).save_pretrained(tmp_path / "clip")
    score = {
        "reference": "drawn",
        "extractor": ["efficientnet-lite0", "dinov2", "cmmd"],
        "weights": {"dinov2": str(tmp_path / "dino"), "cmmd": str(tmp_path / "clip")},
    }
    found = scored(run, score=score)["other"]
    assert found["distance_label"] == "FD-efficientnet-lite0-9"
    labels = {name: one["distance_label"] for name, one in found["distances"].items()}
    assert labels["dinov2"].startswith("FD-DINOv2-")
    assert labels["cmmd"].startswith("CMMD-")
    assert found["distances"]["dinov2"]["distance"] > 0
    with np.load(run.folder.path(layout.reference("cmmd"))) as archive:
        beside = archive["sample"]
    shards = run.folder.names(layout.features("cmmd", "demo", "other"), ".parquet")
    tables = [parquet.read_table(run.folder, name)["features"].to_pylist() for name in shards]
    rows = np.array([row for table in tables for row in table], np.float32)
    assert found["distances"]["cmmd"]["distance"] == pytest.approx(cmmd(rows, beside))
