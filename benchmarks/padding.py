"""What padded batches cost: some pictures in whole batches, beside as many rows as they are."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.timing import in_turns, ratio
from tgate_batch import config
from tgate_batch.config import Arm, Images
from tgate_batch.models.pipeline_runner import open_runner
from tgate_batch.records import Prompt, Shard
from tgate_batch.render.renderer import Renderer

ARMS = {"plain": Arm(), "gated": Arm(gate_step=4, sp_interval=2, warm_up=2)}


def bench_padding(
    model: str = "demo",
    batch_size: int = 8,
    pictures: tuple[int, ...] = (1, 2, 4, 8, 12),
    rounds: int = 5,
) -> dict[str, Any]:
    """Time with padding over time without, by arm and number of images in a batch.

    On a CPU, with one thread, as a worker's; CPU seconds are compared. Pictures are denoised,
    decoded and compressed; their prompts are encoded before.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    clock = time.perf_counter if on_gpu else time.process_time
    renderers = _renderers(model, batch_size, on_gpu)
    found: dict[str, Any] = {"batch": batch_size, **{name: {} for name in ARMS}}
    for count in pictures:
        shard = Shard(0, tuple(Prompt(f"p{n}", f"a picture of number {n}") for n in range(count)))
        calls = {
            f"{name} {padding}": partial(_draw, renderer, shard, name)
            for name in ARMS
            for padding, renderer in renderers.items()
        }
        seconds = in_turns(calls, rounds, clock, what=f"measuring {count} pictures")
        for name in ARMS:
            found[name][str(count)] = ratio(seconds[f"{name} True"], seconds[f"{name} False"])
    return found


def _renderers(model: str, batch: int, on_gpu: bool) -> dict[bool, Renderer]:
    """One with padding and one without, of the same pipeline."""
    settings = config.parse(
        {
            "models": [model],
            "prompts": {"path": "unused.txt"},
            "sampling": {"batch_size": batch, "steps": 10},
            "arms": {"baseline": {}},
            "workers": {"gpus_each": int(on_gpu)},
            "output": "unused",
        }
    )
    runner = open_runner(settings.models[0], settings)
    return {
        padding: Renderer(
            replace(runner, sampling=runner.sampling.model_copy(update={"padding": padding})),
            Images(),
            "bench",
        )
        for padding in (True, False)
    }


def _draw(renderer: Renderer, shard: Shard, name: str) -> None:
    for row in list(renderer.render(shard, name, ARMS[name])):
        row()
