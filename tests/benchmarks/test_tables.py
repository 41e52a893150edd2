"""The documents' figures are those of the records under docs/benchmarks/."""

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.demo import bench_demo
from benchmarks.gpu_table import gpu_table
from tgate_batch.cli.main import run
from tgate_batch.errors import UserError

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "docs" / "benchmarks").glob("*.json"))


@pytest.mark.parametrize("page", [file.relative_to(ROOT) for file in tables.written(ROOT)], ids=str)
def test_document_shows_the_figures_of_the_records(page):
    """`tgate-batch bench tables` writes them again."""
    assert (ROOT / page).read_text(encoding="utf-8") == tables.written(ROOT)[ROOT / page]


def test_every_table_stands_in_a_document_and_every_mark_is_closed():
    texts = [page.read_text(encoding="utf-8") for page in tables.written(ROOT)]
    marks = [name for text in texts for name in re.findall(r"<!-- table: (\S+) -->", text)]
    assert sorted(marks) == sorted(tables.TABLES)
    assert sum(text.count("<!-- end -->") for text in texts) == len(marks)


@pytest.mark.parametrize("name", NAMES)
def test_record_has_a_command_that_is_known_and_a_line_in_the_list(name, monkeypatch):
    from tgate_batch.cli import bench

    record = json.loads((ROOT / "docs" / "benchmarks" / f"{name}.json").read_text())
    monkeypatch.setattr(bench, "run", lambda options: options.benchmark)
    first, job, *words = shlex.split(record["command"])
    assert (first, job) == ("python", "jobs/bench.py")
    assert run(["bench", *words])
    assert f"[{name}.json]({name}.json)" in (ROOT / "docs/benchmarks/README.md").read_text()


RECORDS = {
    "scale_pool": {"results": {"tail_over_ideal": {"256 workers": 1, "100 of mixed speed": 1.234}}}
}


def test_figures_are_written_between_their_marks_and_nothing_else_is_changed():
    text = "It takes <!-- table: tail -->much longer<!-- end --> (simulated).\n"
    assert tables.anew(text, RECORDS) == (
        "It takes <!-- table: tail -->1.00 times the ideal on 256 workers and 1.23 on 100 of mixed "
        "speed<!-- end --> (simulated).\n"
    )
    assert tables.anew("no figure", RECORDS) == "no figure"


def test_checkout_is_written_anew_once(tmp_path):
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    (tmp_path / "docs/benchmarks/scale_pool.json").write_text(json.dumps(RECORDS["scale_pool"]))
    (tmp_path / "README.md").write_text("Short: <!-- table: tail -->?<!-- end -->")
    ((page, text),) = tables.written(tmp_path).items()
    assert "1.23 on 100" in text
    page.write_text(text)
    assert tables.written(tmp_path) == {page: text}


def test_gpu_table_has_a_row_an_arm_and_leaves_out_what_failed_or_was_not_measured():
    arm = {
        "images_per_second": 2.5,
        "speedup": {"median": 1.5, "low": 1.4, "high": 1.6},
        "limit": 2.0,
        "of_the_limit": 0.75,
        "joules_per_image": None,
        "peak_gib": 20.0,
    }
    job = {"images_per_second": 2.4, "job_over_bare_with_encoding": {"median": 0.98}}
    cells = {
        "work, sdxl, 25 steps, 1": {"baseline": {"attention": 1}},
        "arms, sdxl, 25 steps, 8": {"baseline_seconds_by_kind": {"other": 1.0}, "tgate": arm},
        "arms, sdxl, 25 steps, 8, compile regional": {"tgate": arm | {"limit": None}},
        "arms, sdxl, 25 steps, 8, fused_qkv True": {"tgate": arm},
        "arms, sdxl, 25 steps, 1": {"tgate": arm},
        "arms, sd15, 25 steps, 8": {"error": "OutOfMemoryError: no room"},
        "job, sdxl, 20 steps, 8, compile regional": {"baseline": job},
    }
    found = gpu_table({"device": "a card", "cells": cells}).splitlines()
    assert found[2:] == [
        "| sdxl | as they are | tgate | 2.50 | 1.50x [1.40, 1.60] | 2.00x | 0.75 | – | 20.0 |",
        "| sdxl | compiled | tgate | 2.50 | 1.50x [1.40, 1.60] | – | 0.75 | – | 20.0 |",
        "",
        "(a card; 25 steps, batches of 8.)",
        "",
        "The whole job, from prompts to Parquet, sdxl, 20 steps, batches of 8: baseline 2.40 "
        "images/s, 0.98 of a bare loop's.",
    ]
    assert tables.anew("<!-- table: gpu --><!-- end -->", {}).startswith(
        "<!-- table: gpu -->Not measured yet"
    )


def test_unknown_table_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match="no table 'tale'; one of: demo, costs"):
        tables.anew("<!-- table: tale --><!-- end -->", RECORDS)


def test_installed_package_has_no_documents_to_write(tmp_path):
    with pytest.raises(UserError, match="run it in a checkout"):
        tables.written(tmp_path)


@pytest.mark.slow
def test_run_of_the_demo_gives_what_its_table_shows(capsys):
    small = ("prompts.limit=4", "workers.executor=local")
    record = {
        "results": bench_demo(small),
        "command": "python jobs/bench.py --output docs/benchmarks/demo.json demo",
        "date": "2026-01-31",
        "hardware": {"cores": 2},
    }
    lines = tables.TABLES["demo"]({"demo": record}).splitlines()
    arms = [line.split(" | ")[:2] for line in lines[2:5]]
    assert arms == [
        ["| baseline", "every step in full"],
        ["| tgate", "gate 15, self-attention every 3"],
        ["| tgate-early", "gate 8, self-attention every 5"],
    ]
    assert lines[-1].startswith("(12 images, no errors, 25 steps, ")
    assert "2026-01-31, `tgate-batch bench demo`" in lines[-1]
