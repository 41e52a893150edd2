"""The end of a run in a terminal: nothing of a table is ever cut."""

import json

import pytest

from tgate_batch import console
from tgate_batch.report.terminal import table

HEAD = ["model", "arm", "images", "speed-up [95% CI]", "FD-efficientnet-lite0-200 change [95% CI]"]
ROWS = [
    HEAD,
    ["demo", "baseline", "200", "1.00x", "–"],
    ["demo", "tgate-early", "200", "1.49x [1.39, 1.60]", "+0.25 [-0.11, +0.61]"],
    ["stable-diffusion-xl", "deepcache-tgate", "1,200", "2.01x [1.99, 2.03]", "+1.25 [-0.9, +3.4]"],
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
@pytest.mark.parametrize("arms", [1, 2, 3])
def test_every_cell_stands_whole_in_lines_that_fit(width, arms):
    lines = table(ROWS[: arms + 1], width)
    text = "\n".join(lines)
    for row in ROWS[: arms + 1]:
        assert all(cell in text for cell in row[2:])
    assert all(" ".join(row[:2]) in " ".join(text.split()) for row in ROWS[1 : arms + 1])
    assert max(map(len, lines)) <= max(width, 70)  # a heading and its figure need 70


def test_wide_terminals_show_a_row_an_arm():
    head, rule, *body = table(ROWS[:3], 120)
    assert head.split("  ")[0] == "model"
    assert set(rule) == {"-", " "}
    assert [line.split()[1] for line in body] == ["baseline", "tgate-early"]


def test_narrower_ones_show_a_column_an_arm():
    head, _, *body = table(ROWS[:3], 85)
    assert head.split() == ["demo", "baseline", "demo", "tgate-early"]
    assert [line.split("  ")[0] for line in body] == HEAD[2:]


def test_the_narrowest_show_a_block_an_arm():
    lines = table(ROWS[:2], 30)
    assert lines[0] == "demo baseline"
    assert [line.split("  ")[1] for line in lines[1:]] == HEAD[2:]


def test_lines_are_json_on_demand(capsys):
    console.as_json()
    try:
        console.info("half is done", event="progress", done=5, total=10)
        console.warning("it is slow")
    finally:
        console.as_json(False)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["done"], first["total"]) == ("progress", 5, 10)
    assert (second["event"], second["text"]) == ("warning", "it is slow")
