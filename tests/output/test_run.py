import json

import pytest

from tgate_batch import config
from tgate_batch.errors import UserError
from tgate_batch.output import parquet
from tgate_batch.output import run as runs
from tgate_batch.records import ImageRecord


def prepared(settings, **sections):
    data = {**settings}
    for section, changes in sections.items():
        data[section] = {**data[section], **changes} if isinstance(changes, dict) else changes
    return runs.prepare(config.parse(data))


def pretend(run, model, arm, shard):
    """Writes a shard's file without rendering."""
    prompts = range(run.shards[shard].prompts)
    rows = [ImageRecord(str(i), 0, "x", 0, "ok") for i in prompts]
    name = parquet.images_name(model, arm, shard)
    parquet.write_records(run.folder, name, rows, run.shards[shard].digest)


def test_preparing_writes_nothing(settings, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    prepared(settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_has_no_file_is_missing(settings):
    run = prepared(settings)
    pretend(run, "sd15", "baseline", 0)
    pretend(run, "sd15", "tgate", 0)
    pretend(run, "sd15", "tgate", 2)
    left = [(work.shard.index, work.arms) for work in runs.missing(run, runs.open_arms(run))]
    assert left == [(1, ("baseline", "tgate")), (2, ("baseline",))]


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("sampling", {"steps": 5}, "sampling.steps"),
        ("sampling", {"seed": 1}, "sampling.seed"),
        ("sampling", {"negative_prompt": "blurry"}, "sampling.negative_prompt"),
        ("prompts", {"limit": 7}, "prompts"),
        ("prompts", {"shard_size": 5}, "prompts.shard_size"),
        ("arms", {"tgate": {"gate_step": 3}}, "arms.tgate"),
        ("images", {"format": "png"}, "images.format"),
    ],
)
def test_other_pictures_in_the_same_folder_are_refused_by_name(settings, section, change, named):
    settings.setdefault("images", {})
    runs.freeze(prepared(settings))
    with pytest.raises(UserError, match=named):
        prepared(settings, **{section: change})


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("sampling", {"batch_size": 3}),
        ("workers", {"max": 2}),
        ("cost", {"usd_per_gpu_hour": 1.0}),
        ("arms", {"new": {"gate_step": 3}}),
    ],
)
def test_what_changes_no_picture_may_change(settings, section, change):
    settings.setdefault("workers", {})
    settings.setdefault("cost", {})
    runs.freeze(prepared(settings))
    assert prepared(settings, **{section: change}).prompts == 10


def test_changed_caption_is_refused(settings, captions):
    runs.freeze(prepared(settings))
    captions.write_text(captions.read_text().replace("number 9", "number nine"))
    with pytest.raises(UserError, match="other settings of prompts"):
        prepared(settings)


def test_plan_beyond_the_steps_is_refused(settings):
    with pytest.raises(UserError, match=r"arms\.tgate with sd15: gate_step=9 is beyond the 4"):
        prepared(settings, arms={"tgate": {"gate_step": 9}})


def test_folder_that_is_no_model_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match=r"no model_index\.json"):
        prepared(settings, models=[{"name": "sd15", "path": str(tmp_path)}])


def test_frozen_run_is_opened_as_it_was(settings):
    run = prepared(settings)
    runs.freeze(run)
    again = runs.opened(settings["output"])
    assert again.config == run.config
    assert again.shards == run.shards
    assert json.loads(run.folder.read("run.json"))["prompts"] == 10


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        runs.opened(str(tmp_path))
