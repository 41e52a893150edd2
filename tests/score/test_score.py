"""Scoring what a run's folder holds, without rendering it: pictures are drawn, not denoised."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance

from tgate_batch import config, workflow
from tgate_batch.demo import pictures
from tgate_batch.output import parquet
from tgate_batch.output import run as runs
from tgate_batch.records import ImageRecord
from tgate_batch.score import figures as score

SHARDS, EACH = 3, 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 captions, rendered and measured; `other` drew three of them all black."""
    tmp_path = tmp_path_factory.mktemp("finished")
    captions = [str(scene) for scene in pictures.scenes(SHARDS * EACH, 7, held=True)]
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    settings = {
        "models": ["demo"],
        "prompts": {"path": str(tmp_path / "captions.txt"), "shard_size": EACH},
        "arms": {"baseline": {}, "other": {"gate_step": 5}},
        "score": {"reference": "drawn", "bootstrap": 20},
        "output": str(tmp_path / "out"),
    }
    run = runs.prepare(config.parse(settings))
    runs.freeze(run)
    for model, arm, _ in run.pairs():
        for shard in runs.prompts.shards(run.config.prompts):
            records = [
                record(prompt, seed=int(prompt.id[:8]), black=arm == "other" and number == 0)
                for number, prompt in enumerate(shard.prompts)
            ]
            name = parquet.images_name(model.name, arm, shard.index)
            parquet.write_records(run.folder, name, records, shard.digest, {"macs_per_image": "7"})
    measured(run)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(str(finished.folder), tmp_path / "run")
    return runs.opened(str(tmp_path / "run"))


def measured(run):
    asked = score.asked(run)
    for model, arm, _ in run.pairs():
        for shard in run.shards:
            score.measure_shard(run, asked, model.name, arm, shard)


def record(prompt, seed, black):
    picture = pictures.draw(prompt.text, seed)
    if black:
        picture = picture.point(lambda _: 0)
    stream = io.BytesIO()
    picture.save(stream, "png")
    return ImageRecord(prompt.id, 0, prompt.text, seed, "ok", image=stream.getvalue())


def scored(run, code=0, **sections) -> dict[str, dict]:
    """Arm -> its scores, after the whole way from measuring to the report."""
    changed = config.parse({**run.config.model_dump(), **sections})
    run = runs.Run(changed, run.folder, run.shards)
    measured(run)
    assert workflow._score(run) == code
    return {
        arm: json.loads(run.folder.read(f"scores/model=demo/arm={arm}.json"))
        for arm in run.config.arms
    }


def test_statistics_on_disk_give_pytorch_fid_our_distance(run):
    first = scored(run)["other"]
    arms = {}
    for arm in ("baseline", "other"):
        name = score.statistics_name("efficientnet-lite0", "demo", arm)
        with np.load(run.folder.path(name)) as archive:
            arms[arm] = archive["mu"], archive["sigma"]
    again = scored(
        run,
        score={
            "reference": run.folder.path(
                score.statistics_name("efficientnet-lite0", "demo", "baseline")
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


def test_prompt_accuracy_counts_the_black_pictures_as_wrong(run):
    found = scored(run)
    assert found["baseline"]["prompt_accuracy"] == 1
    assert found["other"]["prompt_accuracy"] == 9 / 12
    assert found["other"]["change"]["prompt_accuracy"]["value"] == -3 / 12


def test_distance_change_is_between_the_pictures_that_both_have(run):
    change = scored(run)["other"]["distance_change"]
    # the nine others are the same pictures in both arms
    assert (change["value"], change["low"], change["high"]) == pytest.approx((0, 0, 0), abs=1e-6)


def test_damaged_shard_is_told_and_the_others_are_scored(run, capsys):
    file = run.folder.path("images/model=demo/arm=other/shard-00001.parquet")
    with open(file, "r+b") as stream:
        stream.truncate(100)
    found = scored(run)["other"]
    assert found["images"] == 8
    assert found["distance_label"] == "FD-efficientnet-lite0-6"
    assert "demo other: 1 of 3 shards are missing or damaged (first: 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        ({"prompt_accuracy": {"min": 0.5}, "errors_percent": {"max": 0}}, 0, "pass"),
        ({"prompt_accuracy": {"min": 0.8}}, 3, "FAIL prompt_accuracy 0.75 must be at least 0.8"),
        ({"broken_percent": {"max": 10}}, 3, "FAIL broken_percent 25 must be at most 10, missed"),
        ({"clip_score": {"min": 1}}, 3, "FAIL clip_score was not measured"),
    ],
)
def test_threshold_decides_the_exit_code_and_says_by_how_much(run, capsys, limits, code, said):
    scored(run, code, thresholds=limits)
    assert said in capsys.readouterr().out
    report = json.loads(run.folder.read("report/report.json"))
    assert report["passed"] is (code == 0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"reference": "nosigma.npz"}, "has no sigma"),
        ({"reference": "small.npz"}, "has 5 dimensions, but efficientnet-lite0 makes 1280"),
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
