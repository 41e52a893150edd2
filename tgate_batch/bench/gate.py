"""A gated call beside the reference's, same plan: tiny twins, where Python's overhead is what
counts, and the embedded model."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tgate_batch import models
from tgate_batch.bench.pairs import in_turns, ratio
from tgate_batch.config import Model, Sampling
from tgate_batch.gate import GatePlan, gated
from tgate_batch.twins import twin

PLANS = {
    "sd15": GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2),
    "sdxl": GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2),
    "pixart_alpha": GatePlan(15, sp_interval=3, fi_interval=1, warm_up=2),
    "demo": GatePlan(15, sp_interval=3, fi_interval=1, warm_up=2),
}
_PIXELS = {"demo": 64}  # a picture's side; twins' are 16


def bench_gate(steps: int = 25, pairs: int = 9) -> dict[str, dict[str, float]]:
    """Median CPU seconds of a call, by twin: ``ours``, ``reference``, ``plain``; and ``ratio``.

    One picture a call. Calls alternate and ``ratio`` (ours / reference) is the median over the
    pairs: a busy machine slows both. Needs the reference (``tgate``), a test dependency.
    """
    torch.set_num_threads(1)
    return {name: _measure(name, plan, steps, pairs) for name, plan in PLANS.items()}


def _measure(name: str, plan: GatePlan, steps: int, pairs: int) -> dict[str, float]:
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

    def gated_call() -> None:
        with gated(ours, plan):
            ours(**call)

    calls: dict[str, Callable[[], Any]] = {
        "ours": gated_call,
        "reference": lambda: theirs.tgate(**call, **settings),
        "plain": lambda: ours(**call),
    }
    seconds = in_turns(calls, pairs, clock=time.process_time)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return medians | {"ratio": ratio(seconds["ours"], seconds["reference"])["median"]}


def _pipeline(name: str) -> Any:
    if name == "demo":
        return models.load(Model(name=name), models.resolve(name, Sampling()), "cpu")
    pipeline = twin(name)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config
    )
    return pipeline
