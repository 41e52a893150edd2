"""Each engine setting beside the defaults, one at a time, on a model at hand."""

from functools import partial
from typing import Annotated, Any

import torch

from benchmarks.timing import in_turns, ratio
from tgate_batch import config, console
from tgate_batch.gate import GatePlan, gated
from tgate_batch.models.pipeline_runner import PipelineRunner, open_runner
from tgate_batch.records import Prompt

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "channels first": {"engine": {"channels_last": False}},
    "fused_qkv": {"engine": {"fused_qkv": True}},
    "math attention": {"engine": {"attention": "math"}},
    "bfloat16": {"dtype": "bfloat16"},
    "compile": {"engine": {"compile": True}},
}


def bench_engine(
    model: str = "demo",
    batch_size: int = 10,
    rounds: int = 5,
    settings: Annotated[tuple[str, ...], "compared with the defaults; default: all"] = (),
) -> dict[str, Any]:
    """Speed-up of each setting over the defaults: the plain pipeline, and with a plan.

    ``recompiled`` counts the graphs that are compiled after each call's first.
    """
    on_gpu = torch.cuda.is_available()
    opened = {
        name: _open(model, batch_size, on_gpu, **setting)
        for name, setting in SETTINGS.items()
        if not settings or name in ("default", *settings)
    }
    prompts = [
        Prompt(f"p{number}", f"a picture of number {number}") for number in range(batch_size)
    ]
    plan = GatePlan(10, sp_interval=3, warm_up=2)
    found: dict[str, dict[str, Any]] = {}
    for label, chosen in (("plain", None), ("gated", plan)):
        calls = {name: partial(_draw, runner, prompts, chosen) for name, runner in opened.items()}
        console.info(f"warming up and compiling the {label} pipeline ...", event="phase")
        for call in calls.values():
            call()
        graphs = _graphs()
        seconds = in_turns(calls, rounds, what=f"measuring the {label} pipeline")
        found[label] = {name: ratio(seconds["default"], seconds[name]) for name in seconds}
        found[label]["recompiled"] = _graphs() - graphs
    return found


def _graphs() -> int:
    """How many graphs torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _open(
    model: str, batch: int, on_gpu: bool, engine: dict | None = None, dtype: str = "auto"
) -> PipelineRunner:
    settings = config.parse(
        {
            "models": [{"name": model, "dtype": dtype}],
            "prompts": {"path": "unused.txt"},
            "sampling": {"batch_size": batch},
            "arms": {"baseline": {}},
            "workers": {"gpus_each": int(on_gpu)},
            "engine": engine or {},
            "output": "unused",
        }
    )
    return open_runner(settings.models[0], settings)


def _draw(runner: PipelineRunner, prompts: list[Prompt], plan: GatePlan | None) -> None:
    with gated(runner.pipeline, plan, guided=runner.guided):
        latents = runner.denoise(runner.encode(prompts), list(range(len(prompts))))
    runner.decode(latents)
