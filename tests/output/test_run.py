import json

import pytest

from tgate_batch import __version__, config
from tgate_batch.errors import UserError
from tgate_batch.output import layout, parquet, seal
from tgate_batch.output import run as runs
from tgate_batch.output.status import status
from tgate_batch.records import ImageRecord


def merged(settings, sections):
    data = {**settings}
    for section, changes in sections.items():
        old = data.get(section, {})
        data[section] = {**old, **changes} if isinstance(changes, dict) else changes
    return config.parse(data)


def prepared(settings, replace_stale=False, **sections):
    return runs.prepare(merged(settings, sections), replace_stale)


def begun(settings, replace_stale=False, **sections):
    run = prepared(settings, replace_stale, **sections)
    runs.begin_run(run)
    return run


def pretend(run, arm, *shards, failed=False):
    """Writes shards' files without rendering; of error rows alone where all failed."""
    for index in shards:
        plan = run.shards[index]
        status = "error" if failed else "ok"
        rows = [ImageRecord(str(i), 0, "x", 0, status) for i in range(plan.prompts)]
        about = {layout.ERRORS_KEY: str(len(rows) if failed else 0)}
        name = layout.shard_file(layout.images("sd15", arm), index)
        identity = layout.file_identity(run.provenance_of("sd15", arm), plan.digest)
        parquet.write_records(run.folder, name, "sd15", arm, rows, identity, about)


def test_preparing_writes_nothing(settings, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    prepared(settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_has_no_file_is_pending(settings):
    run = begun(settings)
    pretend(run, "baseline", 0)
    pretend(run, "tgate", 0, 2)
    assert runs.pending(run) == {"sd15": {1: ("baseline", "tgate"), 2: ("baseline",)}}


def test_damaged_file_is_pending_again_until_it_is_drawn(settings):
    run = begun(settings)
    pretend(run, "baseline", 0, 1, 2)
    pretend(run, "tgate", 0, 1, 2)
    name = layout.shard_file(layout.images("sd15", "tgate"), 1)
    runs.note_damaged(run.folder, {name: "flipped bits"})
    assert runs.pending(run) == {"sd15": {1: ("tgate",)}}
    runs.note_damaged(run.folder, {})
    assert runs.pending(run) == {"sd15": {}}


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("sampling", {"steps": 5}, "sampling.steps 4 there and 5 in the config"),
        ("sampling", {"seed": 1}, "sampling.seed 0 there and 1 in"),
        ("sampling", {"guidance_scale": 5.0}, "sampling.guidance_scale 4.0 there and 5.0 in"),
        (
            "sampling",
            {"negative_prompt": "blurry"},
            "sampling.negative_prompt '' there and 'blurry'",
        ),
        (
            "sampling",
            {"scheduler": "EulerDiscreteScheduler"},
            "sampling.scheduler 'DDIMScheduler' there and 'EulerDiscreteScheduler' in",
        ),
        ("arms", {"tgate": {"gate_step": 3}}, "arm tgate of sd15 has gate_step 2 there and 3 in"),
        ("images", {"format": "png"}, "images.format 'webp' there and 'png' in"),
        ("engine", {"fused_qkv": True}, "engine.fused_qkv false there and true in"),
    ],
)
def test_other_pictures_in_the_same_folder_are_refused_by_name(settings, section, change, said):
    run = begun(settings)
    pretend(run, "baseline", 0)
    pretend(run, "tgate", 0)
    with pytest.raises(UserError) as caught:
        prepared(settings, **{section: change})
    assert said in str(caught.value)
    assert "--replace-stale" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_rendered_nothing_binds_no_settings_and_no_prompts(settings, captions):
    begun(settings)
    captions.write_text(captions.read_text().replace("number 9", "number nine"))
    run = begun(settings, sampling={"steps": 5})
    assert run.failed == ()
    assert run.provenance_of("sd15", "tgate")["sampling.steps"] == 5
    assert runs.pending(run) == {"sd15": dict.fromkeys(range(3), ("baseline", "tgate"))}


def test_error_rows_of_other_settings_are_named_and_rendered_again(settings):
    run = begun(settings)
    pretend(run, "baseline", 0, failed=True)
    pretend(run, "tgate", 0, 1, failed=True)
    again = begun(settings, arms={"tgate": {"gate_step": 3}})
    (line,) = again.failed
    rows = sum(shard.prompts for shard in run.shards[:2])
    assert f"{rows} rows of other settings" in line
    assert "arm tgate of sd15 has gate_step 2 there and 3 in the config" in line
    assert "all failed; they are rendered again" in line
    assert again.provenance_of("sd15", "tgate")["gate_step"] == 3
    assert runs.pending(again)["sd15"] == {
        0: ("tgate",), 1: ("baseline", "tgate"), 2: ("baseline", "tgate")
    }  # fmt: skip


def test_one_image_among_error_rows_binds_the_settings(settings):
    run = begun(settings)
    pretend(run, "tgate", 0, failed=True)
    pretend(run, "tgate", 1)
    with pytest.raises(UserError, match="arm tgate of sd15 has gate_step 2 there and 3"):
        prepared(settings, arms={"tgate": {"gate_step": 3}})


def test_error_rows_of_other_prompts_are_named_and_rendered_again(settings, captions):
    run = begun(settings)
    pretend(run, "baseline", 0, 1, 2, failed=True)
    captions.write_text(captions.read_text().replace("number 9", "number nine"))
    again = begun(settings)
    assert [line.partition(",")[0] for line in again.failed] == [
        f"the output has {run.prompts} rows of other prompts"
    ]
    assert len(runs.pending(again)["sd15"]) == 3


def test_another_dtype_is_refused(settings):
    pretend(begun(settings), "baseline", 0)
    model = {**settings["models"][0], "dtype": "bfloat16"}
    with pytest.raises(UserError, match="dtype 'float32' there and 'bfloat16' in"):
        prepared(settings, models=[model])


def test_another_checkpoint_under_the_same_path_is_refused(settings, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(settings["models"][0]["path"], folder)
    settings = {**settings, "models": [{"name": "sd15", "path": str(folder)}]}
    pretend(begun(settings), "baseline", 0)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="arm baseline of sd15 has checkpoint"):
        prepared(settings)


def test_arm_that_left_and_came_back_with_another_gate_is_refused(settings):
    run = begun(settings)
    pretend(run, "tgate", 0)
    alone = {**settings, "arms": {"baseline": {}}}
    begun(alone)
    with pytest.raises(UserError, match="arm tgate of sd15 has gate_step 2 there and 3 in"):
        prepared(settings, arms={"tgate": {"gate_step": 3}})


def test_stale_pictures_are_replaced_when_asked(settings):
    run = begun(settings)
    pretend(run, "tgate", 0, 1, 2)
    pretend(run, "baseline", 0, 1, 2)
    run = begun(settings, replace_stale=True, arms={"tgate": {"gate_step": 3}})
    assert runs.pending(run) == {"sd15": dict.fromkeys(range(3), ("tgate",))}
    assert run.provenance_of("sd15", "tgate")["gate_step"] == 3


def test_other_prompts_are_refused_and_replaced_when_asked(settings, captions):
    run = begun(settings)
    pretend(run, "baseline", 0, 1, 2)
    captions.write_text(captions.read_text().replace("number 9", "number nine"))
    with pytest.raises(UserError, match="other prompts"):
        prepared(settings)
    run = begun(settings, replace_stale=True)
    assert len(runs.pending(run)["sd15"]) == 3


def test_replacing_prompts_that_was_killed_goes_on(settings, captions):
    run = begun(settings)
    pretend(run, "baseline", 0, 1, 2)
    captions.write_text(captions.read_text().replace("number 9", "number nine"))
    run = prepared(settings, replace_stale=True)
    run.ledger.clear(*run.stale)  # and no further
    run = begun(settings)
    assert len(runs.pending(run)["sd15"]) == 3
    assert runs.load_run(settings["output"]).shards == run.shards


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("workers", {"max": 2, "executor": "local"}),
        ("cost", {"usd_per_gpu_hour": 1.0}),
        ("arms", {"new": {"gate_step": 3}}),
        ("prompts", {"shard_size": 5}),
        ("score", {"reference": "drawn"}),
    ],
)
def test_what_changes_no_picture_may_change(settings, section, change):
    begun(settings)
    assert prepared(settings, **{section: change}).prompts == 10


NUMBERS_OF_ROWS = [("sampling", {"batch_size": 3}), ("engine", {"decode_batch_size": 1})]


@pytest.mark.parametrize(("section", "change"), NUMBERS_OF_ROWS)
def test_another_number_of_rows_is_refused_where_batches_are_padded(settings, section, change):
    run = begun(settings)
    pretend(run, "baseline", 0)
    (name,) = change
    with pytest.raises(UserError, match=rf"has {section}\.{name} \w+ there and {change[name]} in"):
        prepared(settings, **{section: change})


@pytest.mark.parametrize(("section", "change"), NUMBERS_OF_ROWS)
def test_another_number_of_rows_may_follow_where_batches_are_not_padded(settings, section, change):
    settings["sampling"]["padding"] = False
    run = begun(settings)
    pretend(run, "baseline", 0)
    assert prepared(settings, **{section: change}).prompts == 10


def test_shards_of_several_pictures_a_prompt_are_whole_batches(settings, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a picture of number {number}\n" for number in range(202)))
    settings["prompts"] = {"path": str(captions), "shard_size": 63}
    rows = {"batch_size": 12, "images_per_prompt": 8}  # three prompts are two batches
    found = [shard.prompts for shard in prepared(settings, sampling=rows).shards]
    assert sum(found) == 202
    assert [size % 3 for size in found[:-1]] == [0] * (len(found) - 1)


def test_model_in_another_place_is_the_same_model(settings, tmp_path):
    import shutil

    begun(settings)
    moved = tmp_path / "moved"
    shutil.copytree(settings["models"][0]["path"], moved)
    prepared(settings, models=[{"name": "sd15", "path": str(moved)}])


def test_output_of_an_older_format_is_refused_with_one_line(settings):
    run = begun(settings)
    run.folder.write(layout.RUN, json.dumps({"config": {}}))
    for refused in (lambda: prepared(settings), lambda: runs.load_run(settings["output"])):
        with pytest.raises(UserError, match=r"has format 1, and tgate-batch .* reads 4 and 5"):
            refused()


@pytest.mark.parametrize("name", [layout.RUN, layout.LEDGER])
def test_a_newer_format_is_refused_with_the_version_that_is_needed(settings, name):
    run = begun(settings)
    content = json.loads(run.folder.read(name))
    assert content["version"] == __version__
    newer = seal.with_seal(content | {"format": layout.FORMAT + 1, "version": "0.9.0"})
    run.folder.write(name, json.dumps(newer))
    for refused in (lambda: prepared(settings), lambda: runs.load_run(settings["output"])):
        with pytest.raises(UserError, match=r"has format 6, .* Fix: install tgate-batch 0\.9\.0"):
            refused()


def test_an_output_of_the_last_format_is_read_and_becomes_one_of_this(settings):
    run = begun(settings)
    pretend(run, "tgate", 0)
    for name in (layout.RUN, layout.LEDGER):
        content = json.loads(run.folder.read(name)) | {"format": 4}
        del content["version"], content["seal"]
        run.folder.write(name, json.dumps(content))
    assert runs.finished(runs.load_run(settings["output"]))["sd15", "tgate"] == {0}
    begun(settings)
    for name in (layout.RUN, layout.LEDGER):
        assert json.loads(run.folder.read(name))["format"] == layout.FORMAT
    assert runs.finished(runs.load_run(settings["output"]))["sd15", "tgate"] == {0}


def test_pictures_without_an_entry_are_entered_again_where_they_are_of_the_config(settings):
    run = begun(settings)
    pretend(run, "tgate", 0)
    run.folder.delete(layout.LEDGER)
    with pytest.raises(UserError, match=r"made_of\.json lacks its settings"):
        prepared(settings, sampling={"seed": 5})
    again = begun(settings)
    assert again.ledger[layout.images("sd15", "tgate")] == run.provenance_of("sd15", "tgate")
    assert runs.finished(again)["sd15", "tgate"] == {0}


def test_a_missing_part_of_the_prompts_is_named_before_anything_else(settings, monkeypatch):
    monkeypatch.setattr(runs.prompt_plan, "SHARDS_A_FILE", 1)
    run = begun(settings)
    run.folder.delete(layout.prompts_part(1))
    told = r"prompts/part-00001\.parquet is missing: of 3 shards of prompts 2 .* Fix: copy"
    for refused in (
        lambda: status(settings["output"]),
        lambda: runs.load_run(settings["output"]),
        lambda: prepared(settings),
    ):
        with pytest.raises(UserError, match=told):
            refused()


def test_change_by_another_run_between_preparing_and_beginning_is_refused(settings):
    first, second = prepared(settings), prepared(settings)
    runs.begin_run(first)
    with pytest.raises(UserError, match="changed by another run"):
        runs.begin_run(second)


def test_plan_beyond_the_steps_is_refused(settings):
    with pytest.raises(UserError, match=r"arms\.tgate with sd15: gate_step=9 is beyond the 4"):
        prepared(settings, arms={"tgate": {"gate_step": 9}})


def test_folder_that_is_no_model_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match=r"no model_index\.json"):
        prepared(settings, models=[{"name": "sd15", "path": str(tmp_path)}])


def test_run_is_loaded_as_it_was(settings):
    run = begun(settings)
    again = runs.load_run(settings["output"])
    assert again.config == run.config
    assert again.shards == run.shards
    assert again.provenance_of("sd15", "tgate") == run.provenance_of("sd15", "tgate")


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no run"):
        runs.load_run(str(tmp_path))


def test_credentials_are_written_nowhere(settings):
    secret = "s3://KEY:SECRET@bucket/ref.npz?region=x&access_key=HUSHHUSH&token=QUIETQUIET"
    run = begun(settings, score={"reference": secret})
    content = b"".join(run.folder.read(name) for name in run.folder.names(""))
    for word in (b"SECRET", b"KEY:", b"HUSHHUSH", b"QUIETQUIET"):
        assert word not in content
    assert b"s3://bucket/ref.npz?region=x" in content


def test_model_whose_files_are_known_only_once_it_is_loaded_is_entered_then(settings, monkeypatch):
    monkeypatch.setattr(runs, "fingerprint", lambda model, dtype: None)  # a hub's, not cached yet
    run = begun(settings)
    (model,) = run.config.models
    assert "images/sd15/tgate" not in run.ledger
    runs.settle_model(run, model, "first", replace_stale=False)
    pretend(run, "tgate", 0)
    again = begun(settings)
    with pytest.raises(UserError, match="checkpoint 'first' there and 'second' in the config"):
        runs.settle_model(again, model, "second", replace_stale=False)
    runs.settle_model(again, model, "second", replace_stale=True)
    assert 0 in runs.pending(again)["sd15"]
    assert again.provenance_of("sd15", "tgate")["checkpoint"] == "second"
