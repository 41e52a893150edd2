"""``tgate-batch find-plan`` with the embedded model: the whole command, killed and repeated."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tgate_batch import config, workflow
from tgate_batch.cli.job import exit_code_of
from tgate_batch.cli.main import run as command
from tgate_batch.errors import UserError
from tgate_batch.execute.verify import verify
from tgate_batch.output import layout
from tgate_batch.output import run as runs

LIMIT = {"prompt_accuracy": 0.9}  # keeps almost any plan: 40 prompts confirm no small loss


def settings(output, **changes):
    return config.parse(
        {
            "models": ["demo"],
            "prompts": {"path": "demo", "limit": 45, "shard_size": 10},
            "sampling": {"steps": 3, "batch_size": 5},
            "arms": {"baseline": {}},
            "workers": {"executor": "local"},
            "find_plan": {"plans": [{"guidance_until": 1}, {"steps": 2}, {"gate_step": 2}]},
            "output": str(output),
            **changes,
        }
    )


def frontier(output) -> bytes:
    return (Path(output) / layout.FRONTIER).read_bytes()


def images(output) -> dict[str, int]:
    """Every file of images, with the time at which it was written."""
    files = (Path(output) / layout.IMAGES).rglob("*.parquet")
    return {str(file): file.stat().st_mtime_ns for file in files}


def prompts_of(file) -> list[str]:
    return pq.read_table(file, columns=["prompt_id"])["prompt_id"].to_pylist()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search: its folder."""
    output = tmp_path_factory.mktemp("searched") / "out"
    assert workflow.find_plan(settings(output), LIMIT) == workflow.DONE
    return output


def test_the_recommended_plan_is_confirmed_and_saves_most_of_those(searched):
    content = json.loads(frontier(searched))
    confirmed = [plan for plan in content["plans"] if plan["state"] == "confirmed"]
    best = max(confirmed, key=lambda plan: plan["saving"])
    assert content["recommended"] == best["plan"]
    assert best["prompts_confirming"] > 0
    assert content["upper_bounds"]["prompt_accuracy"] <= 0.9
    assert content["prompts_searched"] + content["prompts_confirming"] <= 45
    written = sum(plan["images"] for plan in content["plans"])
    rendered = sum(len(prompts_of(file)) for file in images(searched))
    baseline = sum(len(prompts_of(file)) for file in images(searched) if "/baseline/" in file)
    assert content["images"] == rendered
    assert written == rendered - baseline


def test_the_recommended_config_continues_the_same_output(searched):
    file = searched / layout.RECOMMENDED
    assert file.read_text().startswith("# ")
    assert "saves" in file.read_text().splitlines()[0]
    recommended = config.load(str(file))
    name = json.loads(frontier(searched))["recommended"]
    assert list(recommended.arms) == ["baseline", name]
    assert recommended.output == str(searched)
    run = runs.prepare(recommended)  # raises if the images were of other settings
    pending = runs.pending(run)["demo"]
    assert len(pending) < len(run.shards)


def test_the_same_command_again_renders_nothing_and_gives_the_same_bytes(searched):
    before, files = frontier(searched), images(searched)
    assert workflow.find_plan(settings(searched), LIMIT) == workflow.DONE
    assert frontier(searched) == before
    assert images(searched) == files


def test_a_search_that_was_killed_goes_on_and_gives_the_same_bytes(searched, tmp_path, monkeypatch):
    render, calls = workflow.render_pending, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # the first stage of the confirmation
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(workflow, "render_pending", killed)
    with pytest.raises(KeyboardInterrupt):
        workflow.find_plan(settings(tmp_path / "out"), LIMIT)
    assert not (tmp_path / "out" / layout.FRONTIER).exists()
    assert workflow.find_plan(settings(tmp_path / "out"), LIMIT) == workflow.DONE
    assert len(calls) == 3  # the second attempt renders that stage alone
    assert frontier(tmp_path / "out") == frontier(searched)


def test_a_second_search_on_the_same_prompts_spends_the_promise(searched, tmp_path, capsys):
    other = tmp_path / "out"
    shutil.copytree(searched, other)
    assert workflow.find_plan(settings(other), {"prompt_accuracy": 0.8}) in (0, 3)
    assert json.loads(frontier(other))["confirmed_before"] == 1
    assert "confirmed 1 other search before" in capsys.readouterr().err
    assert "the confidence does not hold" in (other / layout.RECOMMENDED).read_text()


def test_nothing_in_the_output_is_foreign_or_damaged(searched):
    found, _ = verify(str(searched))
    assert {fault.kind for fault in found.faults} <= {"missing"}


@pytest.mark.parametrize(
    ("name", "kind"), [(layout.FRONTIER, "damaged"), (layout.SEARCHES, "kept")]
)
def test_a_changed_file_of_a_search_is_found(searched, tmp_path, name, kind):
    """The list of searches cannot be made again, so a repair leaves it alone."""
    other = tmp_path / "out"
    shutil.copytree(searched, other)
    file = other / name
    file.write_text(file.read_text().replace("guidance-1", "guidance-2"))
    found, _ = verify(str(other))
    assert [fault.kind for fault in found.faults if fault.name == name] == [kind]


def test_without_a_plan_within_the_limit_the_baseline_is_recommended(searched, tmp_path):
    other = tmp_path / "out"
    shutil.copytree(searched, other)
    assert workflow.find_plan(settings(other), {"prompt_accuracy": 0.0}) == workflow.OUTSIDE
    assert json.loads(frontier(other))["recommended"] is None
    assert list(config.load(str(other / layout.RECOMMENDED)).arms) == ["baseline"]


@pytest.mark.parametrize(
    ("changes", "limits", "message"),
    [
        ({}, {}, "no limit is given"),
        ({}, {"clip_score": 0.2}, "'clip_score' is not measured by this config"),
        ({}, {"psnr": 3.0}, "a loss of psnr is not defined"),
        ({"models": ["demo", "sd15"]}, LIMIT, "2 models"),
        ({"find_plan": {"families": ["gates"]}}, LIMIT, "unknown family 'gates'"),
        ({"find_plan": {"plans": [{"gate_step": 9}]}}, LIMIT, "beyond the 3 steps"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, limits, message, tmp_path):
    with pytest.raises(Exception, match=message):
        workflow.find_plan(settings(tmp_path / "out", **changes), limits)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["prompt_accuracy", "prompt_accuracy -1", "0.02 x", "a b c"])
def test_a_limit_is_a_figure_and_a_number(text, capsys):
    code = exit_code_of(lambda: command(["find-plan", "--config", "demo", "--lose-at-most", text]))
    assert code == 2
    assert "is not a figure and a number" in capsys.readouterr().err


def test_an_output_with_prompts_in_another_order_is_refused(searched):
    other = settings(searched, prompts={"path": "demo", "limit": 45, "shuffle": 7})
    with pytest.raises(UserError, match="a search needs a random order"):
        workflow.find_plan(other, LIMIT)


def test_a_dry_run_writes_nothing_and_says_what_it_costs(tmp_path, capsys):
    assert workflow.find_plan(settings(tmp_path / "out"), LIMIT, only_plan=True) == workflow.DONE
    said = capsys.readouterr().out
    assert "3 plans on 45 prompts: about" in said
    assert "the smallest loss that these prompts can prove" in said
    assert not (tmp_path / "out").exists()


def test_a_budget_uses_fewer_prompts(tmp_path, capsys):
    many = {"prompts": {"path": "demo", "limit": 200, "shard_size": 10}}
    run = settings(tmp_path / "out", **many)
    workflow.find_plan(run, LIMIT, 500, only_plan=True)
    line = next(one for one in capsys.readouterr().out.splitlines() if "plans on" in one)
    prompts = int(line.split(" prompts")[0].split()[-1])
    most = int(line.split("at most ")[1].split(",")[0])
    assert 60 <= prompts < 200
    assert most <= 500
    with pytest.raises(Exception, match="--budget-images 100 is too small"):
        workflow.find_plan(run, LIMIT, 100, only_plan=True)
