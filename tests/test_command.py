"""The command line: what can be asked, and what is written to start from."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from tgate_batch import __version__, config
from tgate_batch.cli.main import COMMANDS, run
from tgate_batch.config import docs
from tgate_batch.errors import UserError
from tgate_batch.output.lock import output_lock
from tgate_batch.storage import Folder

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def command(*words, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tgate_batch", *words], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_has_an_example_and_the_exit_codes(name, capsys):
    with pytest.raises(SystemExit) as left:
        run([name, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert f"tgate-batch {name}" in said.partition("Examples:")[2]
    assert all(f"\n  {code} " in said for code in (0, 1, 2, 3, 4, 130))


def test_help_lists_every_command_in_a_moment():
    start = time.monotonic()
    done = command("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert "torch" not in done.stderr
    assert time.monotonic() - start < 30  # of a loaded machine; torch is not imported


def test_version_is_the_packages():
    assert command("--version").stdout == f"tgate-batch {__version__}\n"


def test_unknown_command_is_told_with_code_2():
    done = command("rendre")
    assert done.returncode == 2
    assert "invalid choice: 'rendre'" in done.stderr


def test_each_command_is_a_job_too():
    jobs = {file.stem.replace("_", "-") for file in (ROOT / "jobs").glob("*.py")}
    assert jobs == set(COMMANDS)


@pytest.mark.parametrize("name", config.names())
def test_shipped_config_is_found_by_its_name_and_by_its_file(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert config.find(name) == ROOT / "configs" / f"{name}.yaml"
    assert config.load(config.find(name)) == config.load(ROOT / "configs" / f"{name}.yaml")


def test_file_of_ones_own_comes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("models: [sdxl]")
    assert config.find("demo") == Path("demo")


@pytest.mark.parametrize("name", config.names())
def test_init_writes_a_config_that_says_the_same(name, tmp_path):
    run(["init", name, "--to", str(tmp_path / "run.yaml")])
    assert config.load(tmp_path / "run.yaml") == config.load(config.find(name))


def test_init_names_every_key_with_what_it_means(capsys):
    run(["init", "sdxl"])
    written = capsys.readouterr().out
    for section in (config.Prompts, config.Sampling, config.Workers, config.Engine, config.Score):
        for key, field in section.model_fields.items():
            assert f"{key}:" in written
            about = field.description or field.annotation.__doc__  # of a section in a section
            assert " ".join(about.split())[:40] in " ".join(written.split())


def test_init_overwrites_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text("mine")
    with pytest.raises(UserError, match="Fix: give another file"):
        run(["init", "demo", "--to", str(tmp_path / "run.yaml")])
    assert (tmp_path / "run.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", docs.files())
def test_page_and_schema_are_those_of_the_sections(name):
    """`python -m tgate_batch.config.docs` writes them again."""
    assert (ROOT / name).read_text(encoding="utf-8") == docs.files()[name]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_config_names_the_schema_and_keeps_it(file):
    first, second, *_ = file.read_text().splitlines()
    assert first == "# yaml-language-server: $schema=config.schema.json"
    assert second.startswith("# What it shows: ")
    schema = json.loads((ROOT / "configs" / "config.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(file.read_text()), schema)


def test_schema_refuses_what_the_config_refuses():
    schema = json.loads((ROOT / "configs" / "config.schema.json").read_text())
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for wrong in ({"step": 5}, {"workers": {"max": 0}}, {"arms": {"a/b": {}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(demo | wrong, schema)


@pytest.fixture
def half_done(settings) -> str:
    """An output of 10 prompts in 3 shards whose first arm is whole and whose second lacks one."""
    from tgate_batch import workflow
    from tgate_batch.output import layout

    settings["workers"] = {"executor": "local"}
    workflow.render(config.parse(settings))
    folder = Folder(settings["output"])
    folder.delete(layout.shard_file(layout.images("sd15", "tgate"), 2))
    return settings["output"]


def test_status_counts_what_is_done(half_done, capsys):
    assert run(["status", half_done]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{half_done}: 18 of 20 images are done",
        "  sd15 baseline: 10 of 10 images, 3 of 3 files",
        "  sd15 tgate: 8 of 10 images, 2 of 3 files",
        "no process is working on it; tgate-batch render with its config continues it",
    ]


def test_status_says_who_works_there_and_counts_errors_if_asked(half_done, capsys):
    with output_lock(Folder(half_done)):
        run(["status", half_done, "--errors", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["worked_on_by"]["pid"] == os.getpid()
    assert [arm["errors"] for arm in found["arms"]] == [0, 0]


def test_json_lines_tell_phases_scores_and_verdicts(half_done, settings, tmp_path, capsys):
    from tgate_batch import console

    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    try:
        assert run(["render", "--config", str(file), "--log", "json"]) == 0
    finally:
        console.as_json(False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "phase"
    assert {"run", "progress", "scores", "verdict", "report"} <= set(events)
    assert all(line["at"] and line["text"] for line in lines)
