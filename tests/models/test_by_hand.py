"""Gated pipelines of the newer families against T-GATE drawn by hand.

``draw`` is a plain denoising loop, one branch at a time, without hooks; it shares no line with
``tgate_batch.gate``. Branches are 0, the negative, and 1, the positive; the negative one goes on
after the gate.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tgate_batch.gate import GatePlan, gated
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.records import Prompt

GATED = ["sdxl", "playground25", "ssd_1b", "vega", "kolors", "sana"]
PROMPTS = [Prompt("a", "a red cat"), Prompt("b", "two dogs on a boat, in the evening")]
STEPS = 5
CLOSE = 1e-5  # of the largest value; another plan is 3e-5 away or more
NEVER = (STEPS, 1, 1, 0)
pytestmark = pytest.mark.filterwarnings("ignore::tgate_batch.gate.GateNotReached")


def acts(step: int, gate: int, sp: int, fi: int, warm_up: int) -> tuple[int, bool, bool]:
    """(branches, cross-attention reused, self-attention reused): T-GATE's schedule."""
    if step >= gate:
        return 1, True, step % fi != 0
    return 2, False, step != gate - 1 and step > warm_up and step % sp != 0


def draw(runner: PipelineRunner, prompts: list[Prompt], noise: torch.Tensor, plan: tuple) -> Any:
    """Final latents of guided prompts from this noise; ``plan``: gate, sp, fi, warm_up."""
    pipe, steps, scale = runner.pipeline, runner.sampling.steps, runner.sampling.guidance_scale
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    denoise = _denoisers(runner, prompts)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    latents = noise * scheduler.init_noise_sigma if hasattr(pipe, "unet") else noise
    layers = [m for m in denoiser.modules() if hasattr(m, "is_cross_attention")]
    kept: dict[tuple, torch.Tensor] = {}  # (layer, branch) -> what it last computed
    now: dict[str, Any] = {}

    def attending(layer: Any, own: Callable) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            key = layer, now["branch"]
            if not now["cross" if layer.is_cross_attention else "self"]:
                kept[key] = own(*args, **kwargs)
            return kept[key]

        return forward

    for layer in layers:
        layer.forward = attending(layer, layer.forward)
    try:
        for step, t in enumerate(scheduler.timesteps):
            branches, now["cross"], now["self"] = acts(step, *plan)
            predicted = []
            for now["branch"] in range(branches):
                predicted.append(denoise[now["branch"]](scheduler.scale_model_input(latents, t), t))
            if step == plan[0] - 1:
                for layer in layers:
                    kept[layer, 0] = (kept[layer, 0] + kept[layer, 1]) / 2
            guided = predicted[0] + scale * (predicted[-1] - predicted[0])
            latents = scheduler.step(guided, t, latents, return_dict=False)[0]
    finally:
        for layer in layers:
            del layer.forward
    return latents


def _denoisers(runner: PipelineRunner, prompts: list[Prompt]) -> list[Callable]:
    """Of the negative and of the positive branch: (latents, timestep) -> prediction."""
    encoded = encoded_of(runner, prompts)
    positive = {name: rows for name, rows in encoded.items() if not name.startswith("negative_")}
    negative = {name: encoded[f"negative_{name}"] for name in positive}
    call = _unet if hasattr(runner.pipeline, "unet") else _transformer
    return [lambda x, t, text=text: call(runner, text, x, t) for text in (negative, positive)]


def encoded_of(runner: PipelineRunner, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    rows = runner.encode(prompts)
    tensors = [name for name, value in rows[0].items() if isinstance(value, torch.Tensor)]
    return {name: torch.cat([row[name] for row in rows]) for name in tensors}


def _unet(runner: PipelineRunner, text: dict, latents: Any, t: Any) -> torch.Tensor:
    size = runner.sampling.height, runner.sampling.width
    conditions = {
        "text_embeds": text["pooled_prompt_embeds"],
        "time_ids": torch.tensor([[*size, 0, 0, *size]] * len(latents), dtype=torch.float32),
    }
    unet = runner.pipeline.unet
    return unet(latents, t, text["prompt_embeds"], added_cond_kwargs=conditions, return_dict=False)[
        0
    ]


def _transformer(runner: PipelineRunner, text: dict, latents: Any, t: Any) -> torch.Tensor:
    masks = {"encoder_attention_mask": text["prompt_attention_mask"]} if len(text) > 1 else {}
    return runner.pipeline.transformer(
        hidden_states=latents,
        timestep=t.expand(len(latents)),
        encoder_hidden_states=text["prompt_embeds"],
        return_dict=False,
        **masks,
    )[0]


@pytest.fixture
def runners(tiny_runner):
    """``runners(name)`` is a family's tiny model with the steps of this module."""
    return partial(tiny_runner, steps=STEPS)


def noise_of(runner: PipelineRunner) -> torch.Tensor:
    shape = {"SanaPipeline": (4, 2, 2), "WanPipeline": (4, 21, 8, 8)}.get(
        type(runner.pipeline).__name__, (4, 8, 8)
    )
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def called(runner: PipelineRunner, prompts: list[Prompt], plan: tuple | None) -> torch.Tensor:
    """The same, drawn by the pipeline under the gate."""
    text = encoded_of(runner, prompts)
    with gated(runner.pipeline, plan and GatePlan(*plan)):
        return runner.pipeline(
            **text,
            **runner.family.call,
            latents=noise_of(runner),
            guidance_scale=runner.sampling.guidance_scale,
            num_inference_steps=STEPS,
            height=64,
            width=64,
            output_type="latent",
        )[0]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a part of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def by_hand(runner: PipelineRunner, plan: tuple) -> torch.Tensor:
    return draw(runner, PROMPTS, noise_of(runner), plan)


@pytest.mark.parametrize("name", [*GATED, "wan21"])
def test_the_loop_by_hand_is_the_plain_pipeline_without_a_gate(runners, name):
    runner = runners(name)
    assert difference(by_hand(runner, NEVER), called(runner, PROMPTS, None)) < CLOSE


def plans(count: int) -> list[tuple]:
    chance = random.Random(count)
    ranges = ((1, STEPS), (1, 3), (1, 3), (0, 3))
    return [tuple(chance.randint(*limits) for limits in ranges) for _ in range(count)]


@pytest.mark.parametrize(
    "count", [pytest.param(8, id="few"), pytest.param(40, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", GATED)
def test_random_plans_draw_what_the_loop_by_hand_draws(runners, name, count):
    runner = runners(name)
    for plan in plans(count):
        assert difference(called(runner, PROMPTS, plan), by_hand(runner, plan)) < CLOSE, plan
