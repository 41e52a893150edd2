"""T-GATE drawn by hand: a denoising loop without hooks and without ``tgate_batch.gate``.

The attention layers are replaced by ``Remembering`` ones, which are told what to do before each
call; when they compute, keep and return comes from the reference (tgate 1.0.0,
``tgate_scheduler``). Branches are 0, the negative, and 1, the positive.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tgate.tgate_utils import tgate_scheduler

SIZE = 64  # pixels
TWO_CALLS_A_STEP = {
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
}


@dataclass(frozen=True)
class Case:
    """One pipeline call. ``plan``: gate_step, sp_interval, fi_interval, warm_up."""

    steps: int
    text: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]  # by branch
    start: torch.Tensor  # noise, or with ``strength`` the latents of a picture
    plan: tuple[float, int, int, int]
    guidance: float = 7.5
    rescale: float = 0.0
    eta: float = 0.0
    seed: int = 0  # of what the scheduler draws
    strength: float | None = None
    denoising_end: float | None = None
    controls: tuple[Any, ...] = ()  # ControlNets
    hints: tuple[torch.Tensor, ...] = ()  # a picture [batch, 3, height, width] for each of them
    scales: tuple[float, ...] = ()
    control_end: float = 1.0
    guess_mode: bool = False
    kept: int = 0  # the branch that runs on from the gate


@dataclass
class Today:
    """What the attention layers do at the call that runs now."""

    cross: dict[str, bool] = field(default_factory=dict)
    self_: dict[str, bool] = field(default_factory=dict)
    halves: bool = False  # a batch is the two branches, and keeping means keeping their mean
    branch: int = 0  # of a call of one branch


class Remembering(torch.nn.Module):
    """An attention layer that computes, keeps, or returns what it kept."""

    def __init__(self, layer: torch.nn.Module, kind: str, today: Today) -> None:
        super().__init__()
        self.layer, self.kind, self.today = layer, kind, today
        self.kept: dict[int, torch.Tensor] = {}

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        orders = getattr(self.today, self.kind)
        if orders["reuse"]:
            return self.kept[self.today.branch]
        output = self.layer(*args, **kwargs)
        if orders["cache"]:
            kept = output
            if self.today.halves:
                kept = (output[: len(output) // 2] + output[len(output) // 2 :]) / 2
            self.kept[self.today.branch] = kept
        return output

    def average(self) -> None:
        self.kept[0] = self.kept[1] = (self.kept[0] + self.kept[1]) / 2


@contextmanager
def remembering(module: torch.nn.Module, today: Today) -> Iterator[list[Remembering]]:
    """Both layers of every block with cross-attention remember, until the block ends."""
    blocks = [
        block
        for block in module.modules()
        if getattr(getattr(block, "attn2", None), "is_cross_attention", False)
    ]
    swapped = []
    for block in blocks:
        for name, kind in (("attn1", "self_"), ("attn2", "cross")):
            swapped.append((block, name, getattr(block, name)))
            setattr(block, name, Remembering(getattr(block, name), kind, today))
    try:
        yield [getattr(block, name) for block, name, _ in swapped]
    finally:
        for block, name, layer in swapped:
            setattr(block, name, layer)


def steps_of(scheduler: Any, evaluations: int) -> list[int]:
    """The step of each of the first ``evaluations`` calls of the denoiser."""
    name = type(scheduler).__name__
    if name == "PNDMScheduler":
        return [max(0, number - 1) for number in range(evaluations)]
    calls = 2 if name in TWO_CALLS_A_STEP else 1
    return [number // calls for number in range(evaluations)]


@torch.no_grad()
def draw(pipe: Any, case: Case) -> torch.Tensor:
    """The final latents that ``pipe``, called as ``case`` says, has to draw."""
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(case.steps)
    generator = torch.Generator().manual_seed(case.seed)
    latents, timesteps = _start(pipe, scheduler, case, generator)
    if case.denoising_end is not None:
        total = scheduler.config.num_train_timesteps
        least = round(total - case.denoising_end * total)
        timesteps = timesteps[: sum(bool(t >= least) for t in timesteps)]
    steps = steps_of(scheduler, len(timesteps))
    gate, sp, fi, warm_up = case.plan
    if isinstance(gate, float):
        gate = max(1, round(gate * (steps[-1] + 1)))

    called_once = type(pipe).__name__ != "WanPipeline"
    guided = _is_guided(pipe, case)
    accepted = inspect.signature(scheduler.step).parameters
    noise = {"generator": generator, "eta": case.eta}
    noise = {name: noise[name] for name in noise if name in accepted and called_once}
    denoiser, today, control_today = _denoiser(pipe), Today(), Today()
    with remembering(denoiser, today) as layers, _controls(case, control_today):
        for number, t in enumerate(timesteps):
            step = steps[number]
            cross, self_, keep_shape = tgate_scheduler(step, gate, sp, fi, warm_up)
            branches = ([0, 1] if step < gate else [case.kept]) if guided else [1]
            for now in (today, control_today):
                now.cross, now.self_ = cross, self_
            today.halves = called_once and not keep_shape and guided
            control_today.halves = today.halves and not case.guess_mode
            if called_once:
                residuals = _steer(case, scheduler, latents, t, branches, number / len(timesteps),
                                   (number + 1) / len(timesteps))  # fmt: skip
                x = torch.cat([latents] * len(branches))
                if type(pipe).__name__ != "SanaPipeline":
                    x = scheduler.scale_model_input(x, t)
                found = _predict(pipe, case, x, t, branches, residuals).chunk(len(branches))
            else:
                found = []
                for today.branch in branches:
                    found.append(_predict(pipe, case, latents, t, [today.branch], {}))
                if not keep_shape and guided:
                    for layer in layers:
                        layer.average()
            predicted = found[0]
            if len(branches) == 2:
                predicted = found[0] + case.guidance * (found[1] - found[0])
                if case.rescale > 0:
                    predicted = _rescaled(predicted, found[1], case.rescale)
            if predicted.shape[1] == 2 * latents.shape[1]:  # the variance was learned too
                predicted = predicted.chunk(2, dim=1)[0]
            latents = scheduler.step(predicted, t, latents, **noise, return_dict=False)[0]
    return latents


def _denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def _is_guided(pipe: Any, case: Case) -> bool:
    distilled = getattr(_denoiser(pipe).config, "time_cond_proj_dim", None) is not None
    return case.guidance > 1 and not distilled


def _start(pipe: Any, scheduler: Any, case: Case, generator: Any) -> tuple[Any, Any]:
    """The first latents, and the timesteps that are left for them."""
    timesteps = scheduler.timesteps
    if case.strength is None:
        if hasattr(scheduler, "set_begin_index") and hasattr(pipe, "unet"):
            scheduler.set_begin_index(0)
        # Flow schedulers have none, and Wan does not ask.
        scale = getattr(scheduler, "init_noise_sigma", 1.0)
        return case.start * (1.0 if type(pipe).__name__ == "WanPipeline" else scale), timesteps
    skipped = case.steps - min(int(case.steps * case.strength), case.steps)
    first = skipped * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = timesteps[first:]
    noise = torch.randn(case.start.shape, generator=generator, dtype=case.start.dtype)
    return scheduler.add_noise(case.start, noise, timesteps[:1].repeat(len(noise))), timesteps


def _rescaled(predicted: torch.Tensor, positive: torch.Tensor, part: float) -> torch.Tensor:
    """Of the deviation that the positive branch has (arXiv 2305.08891, section 3.4)."""
    axes = tuple(range(1, predicted.ndim))
    ratio = positive.std(dim=axes, keepdim=True) / predicted.std(dim=axes, keepdim=True)
    return part * (predicted * ratio) + (1 - part) * predicted


@contextmanager
def _controls(case: Case, today: Today) -> Iterator[None]:
    opened = [remembering(control, today) for control in case.controls]
    for control in opened:
        control.__enter__()
    try:
        yield
    finally:
        for control in opened:
            control.__exit__(None, None, None)


def _steer(
    case: Case, scheduler: Any, latents: Any, t: Any, branches: list[int], begin: float, end: float
) -> dict[str, Any]:
    """What the ControlNets add to the denoiser's rows of these branches."""
    if not case.controls:
        return {}
    own = [1] if case.guess_mode else branches
    x = scheduler.scale_model_input(torch.cat([latents] * len(own)), t)
    sums: list[torch.Tensor] = []
    for control, hint, scale in zip(case.controls, case.hints, case.scales, strict=True):
        down, middle = control(
            x,
            t,
            encoder_hidden_states=_rows(case, "prompt_embeds", own),
            controlnet_cond=torch.cat([hint] * len(own)),
            conditioning_scale=0.0 if end > case.control_end else scale,
            guess_mode=case.guess_mode,
            added_cond_kwargs=_sizes(case, own),
            return_dict=False,
        )
        made = [*down, middle]
        sums = [a + b for a, b in zip(sums, made, strict=True)] if sums else made
    if case.guess_mode and branches == [0, 1]:
        sums = [torch.cat([torch.zeros_like(one), one]) for one in sums]
    return {
        "down_block_additional_residuals": sums[:-1],
        "mid_block_additional_residual": sums[-1],
    }


def _rows(case: Case, name: str, branches: list[int]) -> torch.Tensor:
    return torch.cat([case.text[branch][name] for branch in branches])


def _sizes(case: Case, branches: list[int]) -> dict[str, torch.Tensor] | None:
    """SDXL's further conditions."""
    if "pooled_prompt_embeds" not in case.text[0]:
        return None
    pooled = _rows(case, "pooled_prompt_embeds", branches)
    sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=pooled.dtype)
    return {"text_embeds": pooled, "time_ids": sizes.repeat(len(pooled), 1)}


def _predict(
    pipe: Any, case: Case, x: torch.Tensor, t: Any, branches: list[int], residuals: dict[str, Any]
) -> torch.Tensor:
    """The denoiser's output for ``x``, the rows of these branches one after the other."""
    embeds = _rows(case, "prompt_embeds", branches)
    name = type(_denoiser(pipe)).__name__
    if name == "UNet2DConditionModel":
        width = pipe.unet.config.time_cond_proj_dim
        more = residuals | {"added_cond_kwargs": _sizes(case, branches)}
        if width is not None:
            more["timestep_cond"] = _guidance_embedding(case.guidance, width, x)
        return pipe.unet(x, t, embeds, return_dict=False, **more)[0]
    x = x.to(embeds.dtype)
    if name == "WanTransformer3DModel":
        return pipe.transformer(x, t.expand(len(x)), embeds, return_dict=False)[0]
    mask = _rows(case, "prompt_attention_mask", branches)
    more = {"hidden_states": x, "encoder_hidden_states": embeds, "encoder_attention_mask": mask}
    if name == "SanaTransformer2DModel":
        timestep = t.expand(len(x)) * pipe.transformer.config.timestep_scale
        return pipe.transformer(**more, timestep=timestep, return_dict=False)[0].float()
    sizes = {"resolution": None, "aspect_ratio": None}
    timestep = t.expand(len(x))
    return pipe.transformer(**more, timestep=timestep, added_cond_kwargs=sizes, return_dict=False)[
        0
    ]


def _guidance_embedding(scale: float, width: int, like: torch.Tensor) -> torch.Tensor:
    """Of a distilled denoiser (diffusers: sines and cosines of 1000 times the scale less one)."""
    scales = torch.tensor(scale - 1).repeat(len(like))[:, None] * 1000.0
    count = width // 2
    rates = torch.exp(torch.arange(count) * -(torch.log(torch.tensor(10000.0)) / (count - 1)))
    angles = scales * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)
