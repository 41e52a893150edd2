"""Jobs and workers that are told to leave, or whose cluster is gone: real processes and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tgate_batch.errors import ClusterLost, UserError
from tgate_batch.execute import orphan_reaper
from tgate_batch.output import shutdown

ROOT = Path(__file__).parents[2]


def eventually(holds, seconds=60):
    """Waits until ``holds()``; returns what it returned last."""
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture
def job(settings, tmp_path):
    """A job on its way: some of its 400 shards stand, most do not."""
    captions = tmp_path / "many.csv"
    captions.write_text("id,caption\n" + "".join(f"c{i},number {i}\n" for i in range(800)))
    started = []

    def start(**workers):
        prompts = {"path": str(captions), "shard_size": 2}
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump({**settings, "prompts": prompts, "workers": workers}))
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs/render.py"), "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        images = Path(settings["output"]) / "images"
        assert eventually(lambda: len(list(images.rglob("shard-*.parquet"))) >= 4, 180)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def family(process):
    return orphan_reaper.process_family([psutil.Process(process.pid)])


def one_of(processes, name):
    return next(process for process in processes if name in process.name())


def end_of(output):
    """The exit code in the history; nothing else is left behind."""
    assert not list(Path(output).rglob(".tmp-*"))
    assert not (Path(output) / "claim.json").exists()
    (end,) = (
        line
        for line in map(json.loads, (Path(output) / "history.jsonl").read_text().splitlines())
        if line["event"] == "end"
    )
    return end["exit_code"]


SIGNALS = [
    (
        signal.SIGTERM,
        143,
        "stopped by SIGTERM; rerun the same command to continue with the missing shards\n",
    ),
    (signal.SIGINT, 130, "stopped; rerun the same command to continue with the missing shards\n"),
]


@pytest.mark.parametrize(("number", "code", "line"), SIGNALS)
@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_signal_ends_a_job_with_its_line_and_code_and_nothing_left(
    job, settings, executor, number, code, line
):
    process = job(executor=executor)
    before = family(process)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # one who is impatient breaks nothing
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.endswith(line)
    assert "SIGTERM received" not in said, "Ray's own words"
    assert end_of(settings["output"]) == code
    assert eventually(lambda: all(gone(p.pid) for p in before))


@pytest.mark.slow
def test_killed_driver_takes_its_ray_along(job):
    process = job()
    before = family(process)
    assert len(before) > 5
    process.kill()
    process.wait()
    assert eventually(lambda: all(gone(p.pid) for p in before))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_lost_cluster_is_one_line_and_exit_code_4(job, settings, victim):
    process = job()
    before = family(process)
    one_of(before, victim).kill()
    _, said = process.communicate(timeout=50)  # Ray by itself takes 60 s, or for ever
    assert process.returncode == 4
    assert said.count("\n") == 1
    assert said.startswith("error: the Ray cluster at ")
    assert "is lost" in said
    assert end_of(settings["output"]) == 4
    assert eventually(lambda: all(gone(p.pid) for p in before))


@pytest.mark.slow
def test_worker_that_is_told_to_leave_leaves_and_the_others_do_its_work(job, settings):
    process = job(max=1)
    worker = one_of(family(process), "ray::_RayWorker")
    worker.terminate()
    assert eventually(lambda: not worker.is_running(), 20)
    stood = len(list(Path(settings["output"]).rglob("shard-*.parquet")))
    more = lambda: len(list(Path(settings["output"]).rglob("shard-*.parquet"))) > stood + 4  # noqa: E731
    assert eventually(more, 120)
    assert process.poll() is None


STARTS_AND_ENDS_RAY = """
from tgate_batch.cli.job import run_as_job
from tgate_batch.execute import cluster

def job():
    print("starts", flush=True)
    cluster.start()
    print("ends", flush=True)
    cluster.stop()

run_as_job(job)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["starts", "ends"])
@pytest.mark.parametrize("seconds", [0.1, 0.6, 1.2])
def test_signal_while_ray_starts_or_ends_is_heard_by_the_job(when, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_ENDS_RAY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    while process.stdout.readline() != f"{when}\n":
        assert process.poll() is None
    time.sleep(seconds)
    before = family(process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    well = [(143, SIGNALS[0][2]), *([(0, "")] if when == "ends" else [])]
    assert (process.returncode, said) in well
    assert eventually(lambda: all(gone(p.pid) for p in before))


LEAVES = """
import hashlib, os, signal
from tgate_batch.output import shutdown
shutdown.watch([signal.SIGTERM], lambda number: os._exit(128 + number))
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


def test_signal_is_told_at_once_though_the_main_thread_is_in_a_library():
    process = subprocess.Popen([sys.executable, "-c", LEAVES], stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    process.terminate()
    try:
        assert process.wait(60) == 143
    finally:
        process.kill()


OWNER = """
import subprocess, sys
from tgate_batch.execute import orphan_reaper
before = subprocess.Popen(["sleep", "600"])
watching = orphan_reaper.start_reaper()
child = subprocess.Popen([sys.executable, "-c", "import subprocess, time, sys;"
    "subprocess.Popen(['sleep', '600']); time.sleep(600)"])
other = subprocess.Popen(["sleep", "600"])
if sys.argv[1] == "said":
    orphan_reaper.watch_only(watching, [child.pid])
print(child.pid, watching.pid, before.pid, other.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("which", ["said", "all that started since"])
def test_guardian_ends_the_processes_of_a_killed_parent_and_then_itself(which):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, which],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    child, guard, before, other = map(int, owner.stdout.readline().split())
    assert eventually(lambda: len(psutil.Process(child).children()) == 1)
    assert eventually(lambda: orphan_reaper.__file__ in psutil.Process(guard).cmdline())
    sleeper = psutil.Process(child).children()[0]
    time.sleep(1)  # some looks
    os.kill(guard, signal.SIGTERM)  # what ends a whole group does not end it
    owner.kill()
    owner.wait()
    for pid in (child, sleeper.pid, guard, *([] if which == "said" else [other])):
        assert eventually(lambda pid=pid: gone(pid))
    for pid in (before, *([other] if which == "said" else [])):
        assert not gone(pid)
        os.kill(pid, signal.SIGKILL)


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_every_end_has_its_exit_code():
    ends = [UserError("a"), ClusterLost("b"), KeyboardInterrupt(), ValueError("c")]
    assert [shutdown.exit_code(end) for end in ends] == [2, 4, 130, 1]
