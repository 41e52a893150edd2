"""How long a large run thinks before it draws: resumed, and begun; and how long its tail is.

Nothing is rendered. Each measurement has a process of its own, so that its memory is its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from benchmarks.slow_store import SCHEME, slow_store
from benchmarks.tail import bench_tail
from tgate_batch import config, console, workflow
from tgate_batch.execute import rendering
from tgate_batch.execute.pool import Send
from tgate_batch.output import layout
from tgate_batch.output import run as runs

_ARM = ("demo", "baseline")


def bench_scale_pool(
    shards: Annotated[int, "finished ones of a run that is resumed"] = 100_000,
    prompts: Annotated[int, "of a fresh run"] = 10_000_000,
    milliseconds: Annotated[float, "a request to the store"] = 30,
) -> dict[str, Any]:
    """Seconds to resume ``shards`` finished shards, here and on a slow store; seconds from a fresh
    run of ``prompts`` prompts on that store to its first task; and the tail over the ideal one.
    """
    found: dict[str, Any] = {
        "shards": shards,
        "prompts": prompts,
        "milliseconds_a_request": milliseconds,
    }
    with tempfile.TemporaryDirectory() as scratch:
        console.info(f"fabricating and resuming {shards:,} shards ...", event="phase")
        _in_a_process("fabricate", scratch, shards)
        found["resume_on_a_disk"] = _in_a_process("resume", scratch, shards)
        found["resume_on_the_store"] = _in_a_process("resume", scratch, shards, milliseconds)
    with tempfile.TemporaryDirectory() as scratch:
        console.info(f"beginning a run of {prompts:,} prompts on a slow store ...", event="phase")
        _write_prompts(scratch, prompts)
        found["fresh_on_the_store"] = _in_a_process("fresh", scratch, milliseconds)
    console.info("simulating the tail ...", event="phase")
    return found | {"tail_over_ideal": bench_tail()}


def fabricate(scratch: str, shards: int) -> None:
    """A run of so many shards of a prompt each, all but the last of which have an (empty) file."""
    _write_prompts(scratch, shards)
    run = workflow.prepare(_settings(scratch, shard_size=1))
    runs.begin_run(run)
    folder = Path(run.folder.path(layout.images(*_ARM)))
    folder.mkdir(parents=True)
    for index in range(shards - 1):
        Path(run.folder.path(layout.shard_file(layout.images(*_ARM), index))).touch()


def resume(scratch: str, shards: int, milliseconds: float | None = None) -> dict[str, float]:
    """What a run that goes on does until it knows that the last shard alone is missing."""
    with slow_store(milliseconds or 0):
        stop = _Stopwatch()
        run = stop.measured(
            "prepare", lambda: workflow.prepare(_settings(scratch, milliseconds, 1))
        )
        pending = stop.measured("pending", lambda: runs.pending(run))
    model, arm = _ARM
    assert pending == {model: {shards - 1: (arm,)}}
    return stop.found()


def fresh(scratch: str, milliseconds: float) -> dict[str, float]:
    """What a new run does until its first task is on its way to a worker."""
    with slow_store(milliseconds):
        stop = _Stopwatch()
        run = stop.measured("prepare", lambda: workflow.prepare(_settings(scratch, milliseconds)))
        stop.measured("begin", lambda: runs.begin_run(run))
        pool = stop.measured("pending", lambda: rendering.render_pool(run, runs.pending(run)))
        pool.joined("worker")
        decided = stop.measured("decide", pool.decide)
    assert isinstance(decided[0], Send)
    return stop.found() | {"shards": len(run.shards)}


def _settings(
    scratch: str, milliseconds: float | None = None, shard_size: int = 64
) -> config.Config:
    """Of a run on the disk, or on a store, where its prompts lie too."""
    where = scratch if milliseconds is None else f"{SCHEME}://{scratch}"
    return config.parse(
        {
            "models": [_ARM[0]],
            "prompts": {"path": f"{where}/prompts.txt", "shard_size": shard_size},
            "arms": {_ARM[1]: {}},
            "output": f"{where}/out",
        }
    )


def _write_prompts(scratch: str, prompts: int) -> None:
    with open(Path(scratch, "prompts.txt"), "w", encoding="utf-8") as stream:
        stream.writelines(
            f"a photograph of a red fox in deep snow at dawn, picture number {number}\n"
            for number in range(prompts)
        )


class _Stopwatch:
    """Seconds by the clock and of this process's CPU, step by step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._cpu = 0.0

    def measured(self, step: str, call: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        answer = call()
        self._seconds[step] = time.perf_counter() - start
        self._cpu += time.process_time() - cpu
        return answer

    def found(self) -> dict[str, float]:
        return {
            "seconds": sum(self._seconds.values()),
            "cpu_seconds": self._cpu,
            **{f"seconds_{step}": seconds for step, seconds in self._seconds.items()},
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


_STEPS: dict[str, Callable[..., Any]] = {"fabricate": fabricate, "resume": resume, "fresh": fresh}


def _in_a_process(step: str, *arguments: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", __name__, step, json.dumps(arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(_STEPS[sys.argv[1]](*json.loads(sys.argv[2]))))
