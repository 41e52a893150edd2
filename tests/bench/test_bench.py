"""Benchmarks run and compare what they say; no test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tgate_batch.bench.encode import FORMATS, bench_encode
from tgate_batch.bench.engine import bench_engine
from tgate_batch.bench.gate import bench_gate
from tgate_batch.bench.model import bench_model
from tgate_batch.bench.orchestration import orchestrate
from tgate_batch.bench.timing import in_turns, ratio
from tgate_batch.errors import UserError

ROOT = Path(__file__).parents[2]
KEYS = {"what", "command", "date", "hardware", "versions", "git", "results"}


def test_calls_take_turns_and_the_first_round_is_left_out():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = in_turns(calls, rounds=2)
    assert order == ["a", "b"] * 3
    assert {name: len(measured) for name, measured in seconds.items()} == {"a": 2, "b": 2}


def test_ratio_is_the_median_over_the_rounds():
    assert ratio([2, 9, 4], [1, 3, 4]) == {"median": 2, "low": 1, "high": 3}


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
    found = bench_gate(steps=12, rounds=1, names=("sd15",))["sd15"]
    assert set(found["seconds"]) == {"ours", "reference", "plain", "deepcache"}
    over = found["seconds"]["reference"] / found["seconds"]["ours"]
    assert found["speedup"]["reference"]["median"] == pytest.approx(over)


@pytest.mark.slow
def test_engine_settings_stand_beside_the_defaults():
    found = bench_engine(batch=1, rounds=1, only=("channels first",))
    for label in ("plain", "gated"):
        assert set(found[label]) == {"default", "channels first", "recompiled"}
        assert found[label]["default"]["median"] == 1
        assert found[label]["recompiled"] == 0  # nothing is compiled at all


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
