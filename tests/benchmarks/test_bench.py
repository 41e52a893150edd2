"""Benchmarks run and compare what they say; no test asserts a time."""

import inspect
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.command import BENCHMARKS, find_benchmark, option_parser
from benchmarks.encode import FORMATS, bench_encode
from benchmarks.engine import bench_engine
from benchmarks.gate import bench_gate
from benchmarks.model import bench_model
from benchmarks.orchestration import orchestrate
from benchmarks.padding import bench_padding
from benchmarks.rows import bench_rows
from benchmarks.scale_pool import bench_scale_pool
from benchmarks.slow_store import SCHEME, slow_store
from benchmarks.timing import in_turns, ratio
from tgate_batch.cli.main import run
from tgate_batch.errors import UserError
from tgate_batch.storage import Folder

ROOT = Path(__file__).parents[2]
KEYS = {"what", "command", "date", "hardware", "versions", "git", "results"}


def test_calls_take_turns_and_the_first_round_is_left_out():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = in_turns(calls, rounds=2)
    assert order == ["a", "b"] * 3
    assert {name: len(measured) for name, measured in seconds.items()} == {"a": 2, "b": 2}


def test_rounds_are_counted_as_they_pass(monkeypatch, capsys):
    monkeypatch.setattr("tgate_batch.execute.progress._SECONDS_BETWEEN_LINES", 0)
    in_turns({"a": lambda: None}, rounds=2, what="measuring nothing")
    assert capsys.readouterr().out.splitlines() == [
        *(f"measuring nothing: {count} of 3 rounds" for count in range(4)),
    ]


def test_benchmark_says_how_far_it_is_and_its_output_is_json_alone(capsys):
    run(["bench", "encode", "--side", "16"])
    said = capsys.readouterr()
    assert set(json.loads(said.out)) == {f"{f} x{threads}" for f in FORMATS for threads in (1, 2)}
    assert said.err.splitlines()[0] == "bench encode: loading ..."
    assert said.err.splitlines()[-1] == "encoding: 6 of 6 rounds"


def test_ratio_is_the_median_over_the_rounds():
    assert ratio([2, 9, 4], [1, 3, 4]) == {"median": 2, "low": 1, "high": 3}


def test_padded_pictures_are_timed_beside_unpadded_ones_of_both_arms():
    found = bench_padding(batch_size=3, pictures=(1, 3), rounds=1)
    assert found.pop("batch") == 3
    assert {name: set(ratios) for name, ratios in found.items()} == {
        name: {"1", "3"} for name in ("plain", "gated")
    }


def test_mixed_rows_are_as_many_as_those_of_the_uniform_files():
    found = bench_rows(rows=3)
    assert found["rows"] == 3
    assert 1 <= found["kinds"] <= 3
    # a batch of 8 for each kind
    assert set(found["rows_drawn_a_row"].values()) == {found["kinds"] * 8 / 3}
    for unit in ("second", "cpu_second"):
        over = found[f"{unit}s"]["uniform"] / found[f"{unit}s"]["mixed"]
        assert found[f"images_per_{unit}_over_uniform"] == over


def test_every_format_is_compared_with_png_on_one_thread():
    found = bench_encode(pictures=2, side=32, rounds=1)
    assert set(found) == {f"{format} x{threads}" for format in FORMATS for threads in (1, 2)}
    assert found["png x1"]["size"] == 1
    assert found["png x1"]["speedup"]["median"] == 1


def test_stored_results_are_those_printed_with_command_and_hardware(tmp_path):
    arguments = ["--output", str(tmp_path / "encode.json"), "encode", "--side", "16"]
    done = subprocess.run(
        [sys.executable, "jobs/bench.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "encode.json").read_text(encoding="utf-8"))
    assert set(stored) == KEYS
    assert stored["results"] == json.loads(done.stdout)
    assert stored["command"].split() == ["python", "jobs/bench.py", *arguments]
    assert set(stored["hardware"]) == {"cpu", "cores", "memory_gib", "gpu"}


@pytest.mark.parametrize(
    "file", sorted((ROOT / "docs" / "benchmarks").glob("*.json")), ids=lambda file: file.stem
)
def test_kept_result_says_what_it_is_of(file):
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert set(kept) == KEYS
    assert f"docs/benchmarks/{file.name}" in kept["command"]


def test_gated_call_is_compared_with_the_reference_a_plain_call_and_deepcache():
    found = bench_gate(steps=12, rounds=1, pipelines=("sd15",))["sd15"]
    assert set(found["seconds"]) == {"ours", "reference", "plain", "deepcache", "never"}
    over = found["seconds"]["reference"] / found["seconds"]["ours"]
    assert found["speedup"]["reference"]["median"] == pytest.approx(over)
    never = found["seconds"]["never"] / found["seconds"]["plain"]
    assert found["never_over_plain"]["median"] == pytest.approx(never)


@pytest.mark.slow
def test_engine_settings_stand_beside_the_defaults():
    found = bench_engine(batch_size=1, rounds=1, settings=("channels first",))
    for label in ("plain", "gated"):
        assert set(found[label]) == {"default", "channels first", "recompiled"}
        assert found[label]["default"]["median"] == 1
        assert found[label]["recompiled"] == 0  # nothing is compiled at all


@pytest.mark.slow
def test_large_run_is_timed_until_it_knows_what_is_missing_and_until_its_first_task():
    found = bench_scale_pool(shards=100, prompts=1000, milliseconds=0)
    parts = ("resume_on_a_disk", "resume_on_the_store", "fresh_on_the_store")
    for part in (found[name] for name in parts):
        steps = [seconds for key, seconds in part.items() if key.startswith("seconds_")]
        assert part["seconds"] == pytest.approx(sum(steps))
        assert part["peak_mib"] > 0
    assert set(found["fresh_on_the_store"]) >= {"seconds_begin", "seconds_decide"}
    assert max(found["tail_over_ideal"][of] for of in ("256 workers", "100 of mixed speed")) < 1.06


def test_slow_store_asks_once_a_file_and_a_page_of_a_listing(tmp_path, monkeypatch):
    slept = []
    for number in range(1500):
        (tmp_path / f"{number}.txt").touch()
    with slow_store(milliseconds=30):
        folder = Folder(f"{SCHEME}://{tmp_path}")
        monkeypatch.setattr(time, "sleep", slept.append)
        assert len(folder.names("")) == 1500
        assert slept == [0.06]
        folder.write("a.txt", "x")
        assert slept == [0.06, 0.03]
        assert folder.read("a.txt") == b"x"
        assert slept == [0.06, 0.03, 0.03, 0.03]  # to open it, to read it
        assert folder.get("b.txt") is None


def test_model_without_an_architecture_is_refused():
    with pytest.raises(UserError, match="'svd'"):
        bench_model("svd")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "pixart_alpha"])
def test_mid_size_model_is_compared_arm_by_arm(name):
    found = bench_model(name, mid_size=True, steps=2, gate_step=1, rounds=1)
    arms = found["batches"][1]
    assert {"baseline", "tgate-v1", "tgate-v2"} <= set(arms)
    assert arms["baseline"]["of_the_limit"] == 1
    assert found["macs"]["tgate-v1"] < found["macs"]["baseline"]


@pytest.mark.slow
def test_stand_in_run_writes_every_row(tmp_path):
    assert orchestrate(50, str(tmp_path))["rows_per_second"] > 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_listed_benchmark_shows_its_options(name, capsys):
    with pytest.raises(SystemExit) as done:
        run(["bench", name, "--help"])
    assert done.value.code == 0
    options = capsys.readouterr().out
    for parameter in inspect.signature(find_benchmark(name)).parameters:
        assert parameter.replace("_", "-") in options.replace("_", "-")


def test_options_have_the_type_of_their_parameter():
    options = option_parser("model", bench_model).parse_args(
        ["sdxl", "--batch-sizes", "1", "2", "--mid-size", "--arms", "tgate-v1"]
    )
    assert options.name == "sdxl"
    assert options.batch_sizes == (1, 2)
    assert options.mid_size is True
    assert options.arms == ("tgate-v1",)
    assert options.steps == 25


def test_benchmark_outside_a_checkout_says_where_to_run_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tgate_batch.cli.bench._CHECKOUT", tmp_path)
    with pytest.raises(UserError, match="Fix: clone the repository"):
        run(["bench", "gate"])
