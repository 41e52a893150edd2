"""What the dataset card says, and what it keeps to itself."""

import json

import pytest
import yaml

from tgate_batch import config, demo
from tgate_batch.output import card, history, layout
from tgate_batch.output.run import Run, describe
from tgate_batch.records import SCHEMA
from tgate_batch.storage import Folder

SECRET = "hunter2"


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(str(tmp_path))


def written(folder: Folder, models, prompts="captions.csv", **sections) -> str:
    """The card of a run that is about to begin."""
    settings = {
        "models": models,
        "prompts": {"path": str(prompts)},
        "arms": {"baseline": {}, "tgate": {"gate_step": 10}},
        "output": "out",
        **sections,
    }
    run = Run(config.parse(settings), folder, [], None)
    folder.write(layout.RUN, json.dumps(describe(run) | {"prompts": 1000, "shards": 16}))
    card.write(folder)
    return folder.read(layout.CARD).decode()


def test_front_matter_names_the_files_and_counts_nothing(folder):
    said = written(folder, ["sd15"])
    _, front, _ = said.split("---\n", 2)
    (only,) = yaml.safe_load(front)["configs"]
    assert only.keys() == {"config_name", "data_files", "version"}
    assert only["data_files"] == layout.IMAGE_FILES


def test_models_arms_sampling_and_counts_are_told(folder):
    said = written(folder, ["lcm_sdxl"], sampling={"images_per_prompt": 3, "seed": 7})
    assert "4 steps of LCMScheduler, guidance 8, 1024 x 1024 pixels, seed 7" in said
    assert "| tgate | `gate_step` 10, `sp_interval` 1, `fi_interval` 1, `warm_up` 0 |" in said
    assert "A complete run has 6,000 rows" in said
    assert "| lcm_sdxl tgate | 0 | 16 |  |" in said


def test_files_are_counted_by_arm_also_of_an_arm_that_left_the_config(folder):
    for arm, shards in (("tgate", 2), ("older", 1)):
        for shard in range(shards):
            folder.write(layout.shard_file(layout.images("sd15", arm), shard), "x")
    folder.write(layout.scores("sd15", "tgate"), json.dumps({"errors": 3}))
    said = written(folder, ["sd15"])
    rows = "| sd15 baseline | 0 | 16 |  |\n| sd15 tgate | 2 | 16 | 3 |\n| sd15 older, no longer"
    assert rows in said
    assert "| images that failed |" in said


@pytest.mark.parametrize("prompts", ["demo", demo.PROMPTS])
def test_licences_that_are_known_stand_with_their_source(folder, prompts):
    said = written(folder, ["lcm_sdxl", "demo"], prompts)
    assert "Weights of lcm_sdxl: openrail++, according to the card of [stabilityai/" in said
    assert "(https://huggingface.co/latent-consistency/lcm-sdxl)" in said
    assert "Weights of demo: apache-2.0" in said
    assert "Prompts: apache-2.0" in said


def test_licences_that_are_not_known_are_said_not_to_be(folder):
    said = written(folder, ["pixart_sigma", {"name": "sdxl", "path": "me/fine-tuned"}])
    assert "Weights of pixart_sigma: not known to tgate_batch" in said
    assert "Weights of sdxl: not known to tgate_batch: the weights are those of `me/fine" in said
    assert "Prompts: not known to tgate_batch" in said


def test_mark_is_told_as_it_is(folder):
    assert "Each file is marked in its XMP" in written(folder, ["sd15"])
    assert "The files are not marked" in written(folder, ["sd15"], images={"mark": False})


def test_no_credential_is_in_it(folder, monkeypatch):
    place = f"s3://me:{SECRET}@bucket/captions.csv?secret_key={SECRET}&region=x"
    monkeypatch.setattr("sys.argv", ["jobs/render.py", "--set", f"prompts.path={place}"])
    with history.record_invocation(folder, history.Invocation(config.Workers())):
        said = written(folder, ["sd15"], place)
    assert "    python jobs/render.py --set" in said
    assert "s3://bucket/captions.csv" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "program", ["/home/me/.venv/bin/tgate-batch", "/home/me/tgate_batch/__main__.py"]
)
def test_command_is_told_as_it_is_typed(folder, monkeypatch, program):
    monkeypatch.setattr("sys.argv", [program, "render", "--config", "my demo"])
    with history.record_invocation(folder, history.Invocation(config.Workers())):
        said = written(folder, ["sd15"])
    assert "\n    tgate-batch render --config 'my demo'  # tgate-batch " in said


def test_text_of_a_user_breaks_no_markdown(folder):
    said = written(folder, ["sd15"], "a`|<script>\nb.csv")
    assert "The prompts are those of `a'/(script) b.csv`;" in said


def test_every_column_is_explained():
    assert list(card.COLUMNS) == SCHEMA.names


def test_card_of_somebody_else_stays(folder):
    folder.write(layout.CARD, "# Mine\n")
    assert written(folder, ["sd15"]) == "# Mine\n"
