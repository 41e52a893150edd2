"""Failures of a run: rows that failed are drawn again when asked, a broken run stops early."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.stand_in import StandIn
from tgate_batch import config, workflow
from tgate_batch.cli.main import run as command
from tgate_batch.errors import UserError
from tgate_batch.execute import rendering
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.models.pipeline_runner import Pixels
from tgate_batch.output import history, layout
from tgate_batch.records import ShardResult
from tgate_batch.storage import Folder


class Painter(StandIn):
    """Paints a picture that its seed alone decides; refuses prompts that say a forbidden word."""

    forbidden = ""

    def encode(self, prompts, arm=None):
        return [{"text": prompt.text} for prompt in prompts]

    def denoise(self, conditions, seeds):
        if any(self.forbidden and self.forbidden in c["text"] for c in conditions):
            raise RuntimeError(f"no {self.forbidden}")
        return torch.tensor(seeds)

    def decode(self, latents):
        colours = [np.random.default_rng(seed).integers(0, 256, 3) for seed in latents.tolist()]
        pictures = np.stack([np.full((16, 16, 3), colour, np.uint8) for colour in colours])
        return Pixels(pictures, np.ones(len(pictures), bool))


@pytest.fixture
def painter(monkeypatch):
    class ThisPainter(Painter):
        pass

    class Executor(LocalExecutor):
        def __init__(self, settings, folder, first=None, **options):
            super().__init__(settings, folder, first, open_runner=ThisPainter, **options)

    def opened(settings, folder, first=None, *told, **options):
        return Executor(settings, folder, first)

    monkeypatch.setattr(workflow, "open_executor", opened)
    return ThisPainter


@pytest.fixture
def run(tmp_path) -> config.Config:
    """20 pictures: 10 prompts in 3 shards under two names of the baseline."""
    (tmp_path / "prompts.txt").write_text("".join(f"picture {word}\n" for word in WORDS))
    return config.parse(
        {
            "models": ["demo"],
            "prompts": {"path": str(tmp_path / "prompts.txt"), "shard_size": 4},
            "sampling": {"batch_size": 2},
            "arms": {"baseline": {}, "same": {}},
            "workers": {"executor": "local"},
            "max_errors": 0.5,
            "output": str(tmp_path / "out"),
        }
    )


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def rows(run, arm="baseline") -> pd.DataFrame:
    return pd.read_parquet(Path(run.output) / layout.images("demo", arm))


def pictures(run, arm="baseline") -> dict[str, bytes]:
    return {row.prompt: row.image["bytes"] for row in rows(run, arm).itertuples()}


def test_prompt_that_fails_is_one_row_that_says_why(painter, run):
    painter.forbidden = "seven"
    assert workflow.render(run) == workflow.DONE
    found = rows(run)
    assert len(found) == 10
    (bad,) = found[found.status == "error"].itertuples()
    assert (bad.prompt, bad.error_kind) == ("picture seven", "RuntimeError")
    assert bad.error == "RuntimeError: no seven"
    assert "in denoise" in bad.error_traceback


def test_errors_are_counted_by_kind_in_the_report(painter, run, capsys):
    painter.forbidden = " t"  # two, three, ten
    workflow.render(run)
    report = json.loads((Path(run.output) / layout.REPORT_JSON).read_text())
    kinds = {arm["arm"]: arm["error_kinds"] for arm in report["arms"]}
    assert kinds["baseline"] == [{"kind": "RuntimeError", "rows": 3, "error": "RuntimeError: no t"}]
    assert "demo baseline: 3 x RuntimeError: no t" in capsys.readouterr().out


def test_error_rows_are_drawn_again_when_asked_and_the_others_stay(painter, run):
    workflow.render(run)
    whole = pictures(run)
    again = run.model_copy(update={"output": run.output + "-again"})
    painter.forbidden = "seven"
    workflow.render(again)
    before = rows(again).set_index("prompt")
    painter.forbidden = ""
    assert workflow.render(again) == workflow.DONE  # not asked
    assert (rows(again).status == "error").sum() == 1
    assert workflow.render(again, retry_errors=True) == workflow.DONE
    after = rows(again).set_index("prompt")
    assert pictures(again) == whole
    others = before.index != "picture seven"
    assert (before.batch[others] == after.batch[others]).all()
    report = json.loads((Path(again.output) / layout.REPORT_JSON).read_text())
    assert [arm["images"] for arm in report["arms"]] == [10, 10]


def test_run_in_which_every_picture_fails_stops_early_and_never_ends_in_0(painter, run, capsys):
    painter.forbidden = "picture"
    assert workflow.render(run) == workflow.MISSING
    assert "12 of 20 images failed, more than max_errors allows (10)" in capsys.readouterr().err
    assert len(rows(run)) == 8  # what was done is kept
    assert history.read(Folder(run.output))[-1]["exit_code"] == workflow.MISSING


def test_run_without_a_limit_whose_every_picture_failed_is_not_done(painter, run):
    painter.forbidden = "picture"
    patient = run.model_copy(update={"max_errors": None})
    assert workflow.render(patient) == workflow.MISSING
    assert len(rows(patient)) == 10


@pytest.mark.parametrize(
    ("limit", "stops"), [(1, True), (2, False), (0.01, True), (0.05, True), (0.1, False), (0, True)]
)
def test_limit_is_a_number_or_a_share_of_the_pictures(painter, run, limit, stops):
    painter.forbidden = "seven"  # one of ten, under two arms: 2 of 20
    limited = run.model_copy(update={"max_errors": limit})
    assert workflow.render(limited) == (workflow.MISSING if stops else workflow.DONE)


def test_by_default_one_image_in_a_hundred_may_fail_and_at_least_one(painter, run, capsys):
    settings = run.model_dump(mode="json", exclude={"max_errors"})
    assert config.parse(settings).max_errors == 0.01
    painter.forbidden = "seven"
    one_arm = config.parse(settings | {"arms": {"baseline": {}}})
    assert workflow.render(one_arm) == workflow.DONE  # 1 of 10
    said = capsys.readouterr().err
    assert "1 of 10 images failed; tgate-batch render with --retry-errors renders them" in said


def test_a_run_with_too_many_failed_images_never_ends_in_0_also_where_nothing_is_left_to_render(
    painter, run, capsys
):
    painter.forbidden = "seven"
    assert workflow.render(run) == workflow.DONE  # half of them may
    fewer = run.model_copy(update={"max_errors": 0.01})
    capsys.readouterr()
    assert workflow.render(fewer) == workflow.MISSING
    said = capsys.readouterr().err
    assert "2 of 20 images failed, more than max_errors allows (1)" in said
    assert "--retry-errors renders them again" in said
    assert "0.5 allows half" in said
    assert history.read(Folder(run.output))[-1]["exit_code"] == workflow.MISSING
    assert workflow.report(fewer) == workflow.MISSING
    painter.forbidden = ""
    assert workflow.render(fewer, retry_errors=True) == workflow.DONE


def test_status_counts_failed_images_apart_from_those_that_are_done(painter, run, capsys):
    painter.forbidden = "seven"
    workflow.render(run)
    capsys.readouterr()
    assert command(["status", run.output]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run.output}: 18 of 20 images are done, 2 failed",
        "  demo baseline: 9 of 10 images, 1 failed, 3 of 3 files",
        "  demo same: 9 of 10 images, 1 failed, 3 of 3 files",
        "tgate-batch render with --retry-errors renders the failed images again",
    ]


def test_the_card_counts_failed_images(painter, run):
    painter.forbidden = "seven"
    workflow.render(run)
    card = (Path(run.output) / layout.CARD).read_text()
    assert "| demo baseline | 3 | 3 | 1 |" in card


def truncations(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if "too long for the text encoder" in line]


def test_negative_prompts_that_are_cut_are_counted_apart(painter, run, capsys):
    painter.truncated_negatives = lambda self, prompts: [p for p in prompts if "seven" in p.text]
    assert workflow.render(run) == workflow.DONE
    (line,) = truncations(capsys)
    assert line.startswith(
        "warning: demo: 1 negative prompt is too long for the text encoder and truncated: of "
        "00000006"
    )


def test_prompts_that_are_cut_are_counted_once_and_the_first_named(painter, run, capsys):
    painter.cut = lambda self, prompts: [p for p in prompts if "e" in p.text.split()[1]]
    assert workflow.render(run) == workflow.DONE
    # one three five seven eight nine ten, of ten prompts under two arms
    (line,) = truncations(capsys)
    assert line.startswith(
        "warning: demo: 7 prompts are too long for the text encoder and truncated: "
    )
    ids = line.rpartition(": ")[2].split(", ")
    assert [one[:8] for one in ids] == ["00000000", "00000002", "00000004", "..."]


def test_files_of_a_worker_that_do_not_arrive_are_told_at_the_first(painter, run, monkeypatch):
    monkeypatch.setattr(rendering, "_VISIBLE_WITHIN", 0.1)

    class Elsewhere(LocalExecutor):
        def __init__(self, *_, **__):
            pass

        def run(self, pool) -> Iterator[ShardResult]:
            yield ShardResult("demo", "baseline", 0, 4, 0, 1.0, "CPU", host="node-2")

    monkeypatch.setattr(workflow, "open_executor", Elsewhere)
    with pytest.raises(UserError, match=r"node-2 wrote images/demo/.* an output that all"):
        workflow.render(run)


def test_a_machine_whose_rows_come_out_unequal_is_told(painter, run, capsys):
    painter.is_invariant = lambda self: False
    assert workflow.render(run) == workflow.DONE
    assert "equal rows of a batch give unequal images" in capsys.readouterr().err
    assert [entry["invariant"] for entry in history.read(Folder(run.output))] == [False]


@pytest.mark.parametrize(("padding", "known"), [(True, True), (False, None)])
def test_the_history_says_whether_pictures_depend_on_their_place(painter, run, padding, known):
    sampling = run.sampling.model_copy(update={"padding": padding})
    assert workflow.render(run.model_copy(update={"sampling": sampling})) == workflow.DONE
    assert [entry["invariant"] for entry in history.read(Folder(run.output))] == [known]
