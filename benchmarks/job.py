"""The whole Ray job beside a bare loop of the same pipeline: what orchestration costs."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import ratio
from tgate_batch import config, workflow
from tgate_batch.config import Config, Images
from tgate_batch.demo import PATH
from tgate_batch.execute import rendering
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.ray import RayExecutor
from tgate_batch.models import pipeline_runner
from tgate_batch.output import run as runs
from tgate_batch.prompts.reader import read_prompts
from tgate_batch.records import ShardResult, image_seed
from tgate_batch.render import codec

_BATCH = 8
_SHARD = 8  # prompts: 240 of them are shipped


def bench_job(images: int = 520, steps: int = 25, rounds: int = 5) -> dict[str, Any]:
    """Images/s of the job over the bare loop's, in turns; and of two workers over one.

    The embedded model's baseline, one thread a worker. The job is timed between files, after two
    for each worker, so that starting Ray, loading and warming up are left out, as they are of the
    loop. ``images`` are spread over the rounds.
    """
    torch.set_num_threads(1)
    each = max(images // rounds // _SHARD, 2) * _SHARD
    bare = _BareLoop(_settings("unused", each, steps, workers=1))
    found: dict[str, list[float]] = {"bare": [], "bare_with_encoding": [], "one": [], "two": []}
    progress = WorkCounter("measuring", "rounds", rounds)
    for _ in range(rounds):
        rendering, encoding_too = bare.images_per_second(each)
        found["bare"].append(rendering)
        found["bare_with_encoding"].append(encoding_too)
        found["one"].append(_job_rate(each, steps, workers=1))
        found["two"].append(_job_rate(2 * each, steps, workers=2))
        progress.add()
    progress.log()

    def over(name: str, other: str) -> float:
        return ratio(found[name], found[other])["median"]

    return {
        "images": each * rounds,
        "steps": steps,
        "images_per_second": found,
        "job_over_bare": over("one", "bare"),
        "job_over_bare_with_encoding": over("one", "bare_with_encoding"),
        "two_workers_over_one": over("two", "one"),
    }


def _settings(output: str, prompts: int, steps: int, workers: int) -> Config:
    return config.parse(
        {
            "models": ["demo"],
            "prompts": {
                "path": str(PATH / "prompts.csv"),
                "limit": prompts,
                "shard_size": _SHARD,
            },
            "sampling": {"steps": steps, "guidance_scale": 4.0, "batch_size": _BATCH},
            "arms": {"baseline": {}},
            "workers": {"min": workers, "max": workers},
            "output": output,
        }
    )


class _BareLoop:
    """The pipeline called batch after batch, its pictures compressed in the same thread."""

    def __init__(self, settings: Config) -> None:
        self._pipeline = pipeline_runner.open_runner(settings.models[0], settings).pipeline
        self._prompts = list(read_prompts(settings.prompts))
        self._sampling = settings.sampling
        self.images_per_second(_BATCH)

    def images_per_second(self, images: int) -> tuple[float, float]:
        """Without and with the compression of the pictures."""
        rendering = compressing = 0.0
        for start in range(0, images, _BATCH):
            prompts = self._prompts[start : start + _BATCH]
            before = time.perf_counter()
            pictures = self._pipeline(
                [prompt.text for prompt in prompts],
                num_inference_steps=self._sampling.steps,
                guidance_scale=self._sampling.guidance_scale,
                generator=[
                    torch.Generator("cpu").manual_seed(image_seed(0, prompt.id, 0))
                    for prompt in prompts
                ],
            ).images
            between = time.perf_counter()
            for picture in pictures:
                codec.encode_image(np.asarray(picture), Images())
            rendering += between - before
            compressing += time.perf_counter() - between
        return images / rendering, images / (rendering + compressing)


def _job_rate(prompts: int, steps: int, workers: int) -> float:
    """Images/s from the file at which all workers are warm to the last one."""
    warm_up = 2 * workers  # files
    with tempfile.TemporaryDirectory() as scratch:
        output = str(Path(scratch, "out"))
        settings = _settings(output, prompts + warm_up * _SHARD, steps, workers)
        run = workflow.prepare(settings)
        runs.begin_run(run)
        finished: list[tuple[float, int]] = []
        with RayExecutor(run.config, run.folder, run.config.models[0]) as executor:
            pool = rendering.render_pool(run, runs.pending(run))
            for receipt in executor.run(pool):
                if isinstance(receipt, ShardResult):
                    finished.append((time.perf_counter(), receipt.images))
    start, _ = finished[warm_up - 1]
    end, _ = finished[-1]
    return sum(images for _, images in finished[warm_up:]) / (end - start)
