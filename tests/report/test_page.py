"""The page's content, without a browser: what stands where, and what is left out."""

import re
import shutil

import fabricated
import pytest

from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.output.seal import is_sealed_text
from tgate_batch.report import page


@pytest.fixture
def html(report):
    return (report / "index.html").read_text(encoding="utf-8")


def table(html, title):
    """The headings of a table, by the title of its box."""
    (found,) = re.findall(rf'aria-label="{re.escape(title)}">\s*<table>(.*?)</table>', html, re.S)
    return [re.sub("<[^>]*>", "", head) for head in re.findall(r"<th scope=\"col\".*?</th>", found)]


def test_sections_come_in_the_order_of_the_questions(html):
    order = re.findall(r'<section(?: id="(\w+)")? aria-labelledby="([\w-]+)"', html)
    assert [first or second for first, second in order] == [
        "verdict",
        "plots",
        "tables",
        "images",
        "errors",
        "settings",
    ]


def test_page_holds_everything_and_its_policy_allows_nothing_else(html):
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html) == []
    assert "default-src 'none'" in html
    assert is_sealed_text(html.encode())
    assert html.rpartition("<!--")[0].rstrip().endswith("</html>")


def test_same_report_gives_the_same_bytes(finished, tmp_path):
    shutil.copytree(str(finished.folder), tmp_path / "run")
    run = runs.load_run(str(tmp_path / "run"))
    pages = []
    for _ in range(2):
        page.write(run)
        pages.append(run.folder.read(layout.REPORT_PAGE))
    assert pages[0] == pages[1]


def test_model_is_named_in_tables_only_where_there_are_several(html):
    assert table(html, "Speed and cost")[:2] == ["arm", "images"]


def test_heading_of_a_figure_with_intervals_does_not_break_inside_the_bracket(html):
    assert "speed-up [95%\u00a0CI]" in table(html, "Speed and cost")


def test_verdict_stands_in_markdown_too(finished, summary):
    said = finished.folder.read(layout.REPORT_MARKDOWN).decode()
    assert re.search(r"^- tgate renders [\d.]+ \[[\d.]+, [\d.]+\] times", said, re.M)


def test_run_without_scores_has_a_page_that_says_nothing_of_arms(tmp_path):
    run = fabricated.begun(tmp_path)
    assert page.write(runs.load_run(run.config.output))["arms"] == []
    assert "Verdict" in run.folder.read(layout.REPORT_PAGE).decode()


def test_speed_of_a_verdict_is_set_off_and_names_stay_text():
    said = page._strong("<b> renders 1.50 [1.40, 1.60] times as many images a second")
    assert said == (
        "&lt;b&gt; renders <strong>1.50 [1.40, 1.60] times</strong> as many images a second"
    )
