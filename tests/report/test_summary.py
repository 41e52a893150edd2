"""Costs and energy in report.json, from scores and a history that are written by hand."""

import html
import json

import pytest

from tgate_batch import config
from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.report import page, terminal

SCORES = {
    "model": "demo",
    "images": 10,
    "errors": 0,
    "broken": 0,
    "error_rows": [],
    "broken_rows": [],
    "macs_per_image_with_attention": 1e9,
}
START = {"event": "start", "gpus_each": 0, "cpus_each": 1}
END = {"event": "end", "workers": 2, "exit_code": 0}


@pytest.fixture
def begun(tmp_path):
    """A run of two arms with 10 images each: 1 and 2 images a second."""

    def begin(**sections):
        captions = tmp_path / "captions.txt"
        captions.write_text("a red circle\n")
        settings = {
            "models": ["demo"],
            "prompts": {"path": str(captions)},
            "arms": {"baseline": {}, "tgate": {"gate_step": 5}},
            "output": str(tmp_path / "out"),
        }
        run = runs.prepare(config.parse(settings | sections))
        runs.begin_run(run)
        for arm, rate in (("baseline", 1.0), ("tgate", 2.0)):
            scores = SCORES | {"arm": arm, "images_per_second_per_worker": rate}
            run.folder.write(layout.scores("demo", arm), json.dumps(scores))
        return run

    return begin


def test_speed_that_no_batch_was_timed_for_has_a_stated_reason_everywhere(begun, capsys):
    run = begun(cost={"usd_per_cpu_hour": 1})
    for arm in ("baseline", "tgate"):
        scores = json.loads(run.folder.read(layout.scores("demo", arm)))
        scores |= {"images_per_second_per_worker": None, "error_kinds": []}
        run.folder.write(layout.scores("demo", arm), json.dumps(scores))
    summary = page.write(run)
    assert {"images_per_second_per_worker", "speedup"} <= summary["arms"][1]["withheld"].keys()
    terminal.show(summary)
    for text in (
        capsys.readouterr().out,
        run.folder.read(layout.REPORT_MARKDOWN).decode(),
        html.unescape(run.folder.read(layout.REPORT_PAGE).decode()),
    ):
        assert "images/s per worker, " in text
        assert "speed-up" in text
        assert "each worker's first batch of an arm is a warm-up" in text


def happened(run, *lines):
    for line in lines:
        run.folder.append(layout.HISTORY, json.dumps(line))


def column(report, key):
    return [arm[key] for arm in report["arms"]]


def test_killed_and_resumed_run_costs_what_both_held(begun):
    run = begun(cost={"usd_per_cpu_hour": 0.36})
    happened(run, START | {"id": "a"}, START | {"id": "b"}, END | {"id": "b", "seconds": 50})
    claim = {"id": "a", "seconds": 100, "workers": 2}  # killed
    run.folder.write(layout.CLAIM, json.dumps(claim))
    report = page.write(run)
    assert report["run"]["bill"] == {
        "usd": pytest.approx(0.03),  # 300 CPU seconds
        "device_hours": pytest.approx(300 / 3600),
        "devices": "CPU",
        "invocations": 2,
        "wall_seconds": 150,
        "withheld": None,
    }
    assert column(report, "usd_per_1000_images_billed") == pytest.approx([2.0, 1.0])
    assert column(report, "usd_per_1000_images") == pytest.approx([0.1, 0.05])
    for file in (layout.REPORT_MARKDOWN, layout.REPORT_PAGE):
        said = run.folder.read(file).decode()
        for words in ("1,000 images, billed", "1,000 images, marginal", "of 2 invocations"):
            assert words in said


def test_costs_without_a_price_say_which_is_missing(begun):
    run = begun(cost={"usd_per_gpu_hour": 3.6})
    happened(run, START | {"id": "a"}, END | {"id": "a", "seconds": 50})
    arm = page.write(run)["arms"][0]
    reason = "cost.usd_per_cpu_hour is not given, and workers have no GPU"
    for key in ("usd_per_1000_images", "usd_per_1000_images_billed"):
        assert arm[key] is None
        assert arm["withheld"][key] == reason
    assert arm["withheld"]["wh_per_1000_images"] == "no worker measured its GPU's energy"


def test_energy_is_shared_as_money_is(begun):
    run = begun()
    worker = {
        "gpu": "GPU-a",
        "joules": 3 * 3600,
        "seconds": dict.fromkeys(("load", "text", "denoise", "decode", "encode", "write"), 1)
        | {"wall": 9},
    }
    run.folder.write(layout.worker("one"), json.dumps(worker))
    report = page.write(run)
    assert column(report, "wh_per_1000_images") == pytest.approx([200, 100])  # 2 and 1 of 3 Wh
    assert "Wh per 1,000 images" in run.folder.read(layout.REPORT_MARKDOWN).decode()
