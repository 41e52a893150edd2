"""The plans rendered by hand: a denoising loop without hooks and without ``tgate_batch.gate``.

It keeps the outputs of the two branches apart, and what it does at a step follows from the numbers
of a ``Setting`` alone, in the words of docs/plans.md.
"""

import copy
import inspect
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import torch
from oracle import Case, Today, remembering, steps_of
from tgate.tgate_utils import tgate_scheduler


@dataclass(frozen=True)
class Setting:
    """What a plan is made of; the default does nothing."""

    first: int = 0
    until: int | None = None
    reuse: bool = False
    every: int | None = None
    weights: tuple[float, ...] = ()  # one per step
    interval: int | None = None  # of self-attention
    warm_up: int = 0
    forecast: tuple[int, ...] = ()
    order: int = 1
    gate: tuple[int, int, int, int] | None = None


class Loop:
    """One pipeline call under a setting; ``render`` returns its final latents."""

    def __init__(self, pipe: Any, case: Case, setting: Setting) -> None:
        self.pipe, self.case, self.setting = pipe, case, setting
        self.once = type(pipe).__name__ != "WanPipeline"
        self.guided = oracle._is_guided(pipe, case)
        self.today, self.control = Today(), Today()
        self.history: dict[Any, list] = defaultdict(list)
        self.difference: Any = None
        self.before = 2 if self.guided else 1  # branches of the last computed step
        self.owes_refresh = self.owes_self = False
        self.last_full = -1

    @torch.no_grad()
    def render(self) -> torch.Tensor:
        pipe, case = self.pipe, self.case
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(case.steps)
        generator = torch.Generator().manual_seed(case.seed)
        latents, timesteps = oracle._start(pipe, scheduler, case, generator)
        if case.denoising_end is not None:
            total = scheduler.config.num_train_timesteps
            least = round(total - case.denoising_end * total)
            timesteps = timesteps[: sum(bool(t >= least) for t in timesteps)]
        steps = steps_of(scheduler, len(timesteps))
        accepted = inspect.signature(scheduler.step).parameters
        noise = {"generator": generator, "eta": case.eta}
        noise = {name: noise[name] for name in noise if name in accepted and self.once}
        denoiser = oracle._denoiser(pipe)
        with (
            remembering(denoiser, self.today) as self.layers,
            oracle._controls(case, self.control),
        ):
            for number, t in enumerate(timesteps):
                step, place = steps[number], number - steps.index(steps[number])
                ends = number / len(timesteps), (number + 1) / len(timesteps)
                negative, positive = self.outputs(scheduler, latents, t, step, place, ends, steps)
                predicted = positive
                if self.guided:
                    scale = case.guidance
                    if self.setting.weights and self.mode(step) != "one":
                        scale = self.setting.weights[min(step, len(self.setting.weights) - 1)]
                    predicted = negative + scale * (positive - negative)
                    if case.rescale > 0:
                        predicted = oracle._rescaled(predicted, positive, case.rescale)
                if predicted.shape[1] == 2 * latents.shape[1]:
                    predicted = predicted.chunk(2, dim=1)[0]
                latents = scheduler.step(predicted, t, latents, **noise, return_dict=False)[0]
        return latents

    def mode(self, step: int) -> str:
        """Both branches, one, or one and the last difference."""
        own = self.setting
        if own.gate:
            return "both" if step < own.gate[0] else "one"
        if own.weights and own.weights[min(step, len(own.weights) - 1)] == 1:
            return "one"
        if step < own.first:
            return "one"
        if own.until is None or step < own.until:
            return "both"
        if not own.reuse:
            return "one"
        refreshes = own.every is not None and (step - own.until + 1) % own.every == 0
        return "both" if refreshes else "difference"

    def outputs(self, scheduler, latents, t, step, place, ends, steps) -> tuple[Any, Any]:
        own, mode = self.setting, self.mode(step)
        acts = mode != "one"
        past = self.history[acts, place]
        if place == 0:
            self.skips = step in own.forecast and bool(self.history[acts, 0])
        if self.skips:
            if place == 0:
                self.owes_refresh |= own.reuse and step >= own.until - 1 and mode == "both"
                self.owes_self |= self.self_due(step, mode)
            return tuple(
                extrapolated([(at, pair[side]) for at, pair in past][-own.order - 1 :], step)
                for side in (0, 1)
            )
        if place == 0:
            if self.owes_refresh and mode == "difference":
                mode = "both"
                self.owes_self = True
            self.now = mode
            self.orders(step, mode, steps)
            self.owes_refresh = self.owes_self = False
        mode = self.now
        branches = [0, 1] if mode == "both" and self.guided else [1]
        if self.guided and own.gate and mode == "one":
            branches = [0]
        outputs = self.run(scheduler, latents, t, branches, ends)
        if len(branches) == 2:
            pair = outputs[0], outputs[1]
            self.difference = outputs[1] - outputs[0]
        elif mode == "difference" and self.guided:
            pair = outputs[0] - self.difference, outputs[0]
        else:
            pair = outputs[0], outputs[0]
        past.append((step, pair))
        self.before = len(branches)
        return pair

    def self_due(self, step: int, mode: str) -> bool:
        own = self.setting
        if own.gate:
            return tgate_scheduler(step, *own.gate)[1]["cache"]
        if own.interval is None or step < own.warm_up:
            return False
        joins = mode == "both" and step > 0 and self.mode(step - 1) != "both"
        return step == own.warm_up or step % own.interval == 0 or joins

    def orders(self, step: int, mode: str, steps: list[int]) -> None:
        """What the attention layers do at this step."""
        own = self.setting
        cross, self_, means = {"cache": False, "reuse": False}, {"cache": False, "reuse": False}, 0
        if own.gate:
            cross, self_, _ = tgate_scheduler(step, *own.gate)
            last = max(
                one for one in range(own.gate[0]) if one not in own.forecast or one == 0
            )  # the last computed step before the gate
            if step == last:
                cross = self_ = {"cache": True, "reuse": False}
            means = step == last
        elif own.interval is not None and step >= own.warm_up:
            self_ = {"cache": True, "reuse": False}
            if not self.self_due(step, mode) and not self.owes_self:
                self_ = {"cache": False, "reuse": True}
        if self.owes_self and self_["reuse"]:
            self_ = {"cache": True, "reuse": False}
        for now in (self.today, self.control):
            now.cross, now.self_ = cross, self_
        self.today.halves = bool(means) and self.once and self.guided
        self.control.halves = self.today.halves and not self.case.guess_mode
        self.means = means
        one_left = self.before == 2 and mode != "both" and not own.gate
        if one_left and self.once and self_["reuse"]:
            for layer in self.layers:
                layer.kept = {key: value.chunk(2)[1] for key, value in layer.kept.items()}

    def run(self, scheduler, latents, t, branches, ends) -> list[torch.Tensor]:
        pipe, case = self.pipe, self.case
        if self.once:
            residuals = oracle._steer(case, scheduler, latents, t, branches, *ends)
            x = torch.cat([latents] * len(branches))
            if type(pipe).__name__ != "SanaPipeline":
                x = scheduler.scale_model_input(x, t)
            return list(oracle._predict(pipe, case, x, t, branches, residuals).chunk(len(branches)))
        outputs = []
        for self.today.branch in branches:
            outputs.append(oracle._predict(pipe, case, latents, t, [self.today.branch], {}))
        if self.means and self.guided:
            for layer in self.layers:
                layer.average()
        return outputs


def extrapolated(points: list[tuple[int, torch.Tensor]], at: int) -> torch.Tensor:
    """The value at ``at`` of the polynomial through the points (numpy solves for it)."""
    places = np.array([place for place, _ in points], float)
    vandermonde = np.vander(places - at, increasing=True)
    weights = np.linalg.inv(vandermonde)[0]
    return sum(float(weight) * value for weight, (_, value) in zip(weights, points, strict=True))
