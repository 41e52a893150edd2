"""Plots as SVG inside the page: the theme's colours, text as text, equal bytes for equal data."""

import re
from xml.etree import ElementTree

import pytest

from tgate_batch.report import plots

WORKERS = {
    "workers": 2,
    "seconds": {
        "load": 10.0,
        "text": 5.0,
        "denoise": 70.0,
        "decode": 10.0,
        "idle": 5.0,
        "encode": 1.0,
        "write": 1.0,
        "wall": 100.0,
    },
}


def timed(*rates):
    return [{"images": 10, "seconds": 10 / rate} for rate in rates]


def arm(name, baseline=False, model="demo", **more):
    found = {
        "model": model,
        "arm": name,
        "is_baseline": baseline,
        "images": 40,
        "speedup": 1.0 if baseline else 1.5,
        "images_per_second_per_worker": 2.0,
        "seconds_per_image": {"denoise": 0.5, "decode": 0.25, "encode": None},
        "prompt_accuracy": 0.9,
        "course": timed(1.0, 2.0),
        "by_worker": {"a": timed(1.0)[0], "b": timed(2.0)[0]},
        "spread": {},
        "change": None,
    }
    if not baseline:
        found["change"] = {
            "prompt_accuracy": {
                "value": 0.05,
                "low": -0.01,
                "high": 0.11,
                "gained": 3,
                "lost": 1,
                "count": 40,
            }
        }
        found["spread"] = {"psnr": {"low": 0.0, "high": 60.0, "counts": [0] * 19 + [4] + [0] * 20}}
    return found | more


SUMMARY = {"arms": [arm("baseline", True), arm("tgate")], "workers": WORKERS}


def drawn(summary=SUMMARY):
    return {plot.name: plot for plot in plots.plots(summary)}


def test_every_plot_of_a_run_is_there_with_its_figures():
    found = {name: plot.rows[1:] for name, plot in drawn().items()}
    assert found == {
        "frontier-prompt_accuracy_change": [
            ["baseline", "1.00x", "0 (by definition)"],
            ["tgate", "1.50x", "+5.0 points [-1.0, +11.0]: 3 gained, 1 lost"],
        ],
        "stages": [
            ["baseline", "0.5", "0.25", "–", "0.75"],
            ["tgate", "0.5", "0.25", "–", "0.75"],
        ],
        "whole": [
            ["load", "10.0", "10.0%"],
            ["text", "5.0", "5.0%"],
            ["denoise", "70.0", "70.0%"],
            ["decode", "10.0", "10.0%"],
            ["idle", "5.0", "5.0%"],
        ],
        "course": [
            [name, share, rate]
            for name in ("baseline", "tgate")
            for share, rate in (("0 to 50", "1.00"), ("50 to 100", "2.00"))
        ],
        "workers": [
            [name, worker, rate, "10"]
            for name in ("baseline", "tgate")
            for worker, rate in (("a", "1.00"), ("b", "2.00"))
        ],
        "changed-prompt_accuracy": [["tgate", "1", "3", "36", "+5.0 [-1.0, +11.0]"]],
        "spread-psnr": [["tgate", "28.5 to 30", "4"]],
    }


def test_nothing_is_drawn_of_nothing():
    assert plots.plots({"arms": [], "workers": None}) == []
    bare = {"seconds_per_image": {}, "course": [], "by_worker": {}, "speedup": None}
    alone = arm("baseline", True, **bare)
    assert plots.plots({"arms": [alone], "workers": None}) == []


def test_one_worker_is_no_comparison():
    alone = arm("baseline", True, by_worker={"a": timed(1.0)[0]})
    assert "workers" not in drawn({"arms": [alone], "workers": None})


def test_equal_figures_give_equal_bytes():
    assert drawn() == drawn()


def test_plots_share_no_id_and_bring_no_style_for_the_page():
    every = "".join(plot.svg for plot in drawn().values())
    ids = re.findall(r'\bid="([^"]+)"', every)
    assert len(ids) == len(set(ids))
    assert "<style" not in every
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', every))
    for first, second in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', every):
        assert (first or second) in ids


def test_every_colour_is_the_themes():
    for plot in drawn().values():
        assert re.findall(r"#[0-9a-fA-F]{6}", plot.svg) == []
        assert re.search(r"var\(--(ink|arm-\d|stage-\d)\)", plot.svg)


@pytest.mark.parametrize("name", ["<b>&", "a $b$ _c", "\u05d0\u05d1"])
def test_names_of_arms_stay_text(name):
    found = drawn({"arms": [arm("baseline", True), arm(name)], "workers": None})
    for plot in found.values():
        texts = [one.text for one in ElementTree.fromstring(plot.svg).iter() if one.text]
        assert any(name in text for text in texts)


def test_models_are_named_where_there_are_several():
    arms = [
        arm("baseline", True),
        arm("tgate"),
        arm("baseline", True, "sdxl"),
        arm("tgate", model="sdxl"),
    ]
    rows = drawn({"arms": arms, "workers": None})["changed-prompt_accuracy"].rows
    assert [row[0] for row in rows] == ["arm", "demo tgate", "sdxl tgate"]


def test_change_for_which_lower_is_better_has_its_better_end_up():
    worse = {"value": 2.0, "low": 1.0, "high": 3.0}
    arms = [arm("baseline", True, fd=1.0), arm("tgate", change={}, fd=3.0, distance_change=worse)]
    svg = drawn({"arms": arms, "workers": None})["frontier-fd_change"].svg
    heights = {
        place: float(re.search(rf'-point-{place}"[^|]*?<use [^>]*y="([\d.]+)"', svg)[1])
        for place in (0, 1)
    }
    assert heights[1] > heights[0]  # further down on the page
