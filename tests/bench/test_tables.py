"""The documents' figures are those of the records under docs/benchmarks/."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tgate_batch.bench import tables
from tgate_batch.bench.demo import bench_demo
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
