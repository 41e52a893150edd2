"""Planning, scheduling and writing of many prompts, with a pipeline that costs nothing."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stand_in import StandIn
from tgate_batch import config, console, workflow
from tgate_batch.execute import rendering
from tgate_batch.execute.ray import RayExecutor
from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.records import ShardResult

_ROOT = Path(__file__).parents[1]


def bench_orchestration(prompts: tuple[int, ...] = (10_000, 100_000)) -> dict[str, Any]:
    """Rows/s and the driver's peak memory by number of prompts, each in a process of its own;

    and the seconds from a command to its first picture, with the embedded model.
    """
    runs_of = {count: _in_a_process(count) for count in prompts}
    least = runs_of[min(prompts)]["driver_peak_mib"]
    for found in runs_of.values():
        found["driver_mib_above_least"] = found["driver_peak_mib"] - least
    console.info("drawing a first picture under each executor ...", event="phase")
    first = {executor: first_picture_seconds(executor) for executor in workflow.EXECUTORS}
    return {"runs": runs_of, "first_picture_seconds": first}


def first_picture_seconds(executor: str) -> float:
    """From starting ``jobs/render.py`` (embedded model, this machine alone) to its first file."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ["prompts.limit=2", "prompts.shard_size=1", "workers.max=1"]
        options.append(f"workers.executor={executor}")
        command = [sys.executable, "jobs/render.py", "--config", "configs/demo.yaml"]
        command += ["--output", scratch]
        for option in options:
            command += ["--set", option]
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as job:
            while job.poll() is None and not list(Path(scratch).glob(layout.IMAGE_FILES)):
                time.sleep(0.05)
            seconds = time.perf_counter() - start
            job.wait()
    return seconds


def orchestrate(prompts: int, scratch: str) -> dict[str, float]:
    """One run of ``prompts`` prompts, from reading them to the last file."""
    file = Path(scratch, "prompts.txt")
    with open(file, "w", encoding="utf-8") as stream:
        stream.writelines(f"a picture of number {number}\n" for number in range(prompts))
    settings = config.parse(
        {
            "models": ["demo"],
            "prompts": {"path": str(file), "shard_size": 1000},
            "sampling": {"batch_size": 100},
            "arms": {"baseline": {}},
            "output": str(Path(scratch, "out")),
        }
    )
    start = time.perf_counter()
    run = workflow.prepare(settings)
    runs.begin_run(run)
    model = run.config.models[0]
    with RayExecutor(run.config, run.folder, model, open_runner=StandIn) as executor:
        pool = rendering.render_pool(run, runs.pending(run))
        said = executor.run(pool)
        written = sum(receipt.images for receipt in said if isinstance(receipt, ShardResult))
    seconds = time.perf_counter() - start
    assert written == prompts
    return {
        "rows_per_second": prompts / seconds,
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _in_a_process(prompts: int) -> dict[str, float]:
    console.info(f"a run of {prompts:,} prompts with a stand-in pipeline ...", event="phase")
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(prompts)],
        check=True,
        capture_output=True,
        text=True,
        cwd=_ROOT,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(orchestrate(int(sys.argv[1]), folder)))
