"""A gated call beside the reference's with the same plan, a plain one and DeepCache's.

On tiny models, where Python's overhead is what counts, and on the embedded model.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch

from tgate_batch.bench.timing import in_turns, ratio
from tgate_batch.config import Model, Sampling
from tgate_batch.gate import DeepCache, GatePlan, gated
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load

PLANS = {
    "sd15": GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2),
    "sdxl": GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2),
    "pixart_alpha": GatePlan(15, sp_interval=3, fi_interval=1, warm_up=2),
    "demo": GatePlan(15, sp_interval=3, fi_interval=1, warm_up=2),
}
_PIXELS = {"demo": 64}  # a picture's side; tiny models' are 16


def bench_gate(
    steps: int = 25, rounds: int = 9, names: tuple[str, ...] = tuple(PLANS)
) -> dict[str, dict[str, Any]]:
    """By pipeline: median CPU ``seconds`` of a call, one picture, one thread; and ``speedup``,

    how many times as fast a gated call is as the reference's, a plain one, and DeepCache's (of
    U-Nets). Needs the reference (``tgate``), a test dependency.
    """
    torch.set_num_threads(1)
    return {name: _measure(name, PLANS[name], steps, rounds) for name in names}


def _measure(name: str, plan: GatePlan, steps: int, rounds: int) -> dict[str, Any]:
    import tgate

    loaders = {
        "sd15": tgate.TgateSDLoader,
        "sdxl": tgate.TgateSDXLLoader,
        "pixart_alpha": tgate.TgatePixArtAlphaLoader,
        "demo": tgate.TgateSDLoader,
    }
    ours, theirs = _pipeline(name), loaders[name](_pipeline(name))
    side = _PIXELS.get(name, 16)
    call = {"prompt": "a cat", "height": side, "width": side, "num_inference_steps": steps}
    call["output_type"] = "latent"
    if name == "pixart_alpha":
        call |= {"use_resolution_binning": False, "clean_caption": False}
    settings = {key: getattr(plan, key) for key in plan.__dataclass_fields__}

    def gated_call(plan: GatePlan | None, deepcache: DeepCache | None = None) -> None:
        with gated(ours, plan, deepcache=deepcache):
            ours(**call)

    calls: dict[str, Callable[[], Any]] = {
        "ours": partial(gated_call, plan),
        "reference": lambda: theirs.tgate(**call, **settings),
        "plain": partial(gated_call, None),
    }
    if hasattr(ours, "unet"):
        calls["deepcache"] = partial(gated_call, None, DeepCache())
    seconds = in_turns(calls, rounds, clock=time.process_time, what=f"measuring {name}")
    return {
        "seconds": {key: statistics.median(values) for key, values in seconds.items()},
        "speedup": {key: ratio(seconds[key], seconds["ours"]) for key in calls if key != "ours"},
    }


def _pipeline(name: str) -> Any:
    if name == "demo":
        return load(Model(name=name), catalogue.resolve(name, Sampling()), "cpu")
    pipeline = catalogue.tiny(name)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config
    )
    return pipeline
