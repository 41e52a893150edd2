"""The wheel alone: no checkout, an empty folder, and the command draws, scores and reports."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--set", "prompts.limit=2", "--set", "sampling.steps=4", "--set", "workers.max=1"),
    *("--set", 'arms={"baseline": {}, "tgate": {"gate_step": 2}}'),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_command_configs_and_model_but_no_training_and_no_benchmark(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "tgate_batch/configs/demo.yaml" in names
    assert "tgate_batch/demo/prompts.csv" in names
    assert "tgate_batch/report/page.html" in names or any("page" in name for name in names)
    assert not [name for name in names if "training" in name or name.startswith("tests")]
    assert not [name for name in names if "benchmark" in name]
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    said = zipfile.ZipFile(wheel).read(entry).decode()
    assert "tgate-batch = tgate_batch.cli:main" in said
    assert wheel.stat().st_size < 20 << 20


def test_unpacked_wheel_draws_from_an_empty_folder(wheel, tmp_path):
    """With the dependencies of this environment, and without its checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "here").mkdir()
    code = "import sys, tgate_batch; from tgate_batch.cli import main; print(tgate_batch.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    run = ["render", "--config", "demo", "--output", "out", "--set", "workers.executor=local"]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; main(*sys.argv[1:])", *run, *SMALL],
        cwd=tmp_path / "here",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "site") in done.stdout.splitlines()[0]
    report = json.loads((tmp_path / "here/out/report/report.json").read_text())
    assert [arm["images"] for arm in report["arms"]] == [2, 2]


@pytest.mark.slow
def test_wheel_in_a_fresh_environment_draws_scores_and_reports(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    bin = tmp_path / "venv" / "bin"
    install = [bin / "python", "-m", "pip", "install", "--quiet", str(wheel)]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*install, *constraints], check=True)
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [bin / "tgate-batch", "render", "--config", "demo", "--output", "OUT", *SMALL],
        cwd=tmp_path / "here",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "here/OUT/report/index.html").is_file()
