"""Multiply-accumulates (MACs) of one image, counted from the architecture alone.

What is counted. One image passes ``steps`` times through the denoiser, with guidance as a batch of
two (negative and positive branch), without it as a batch of one. Text encoders and the VAE run
once an image; they are shown apart and enter neither figure below.

- *Published convention* (``macs``): Linear and convolution layers of the denoiser, as calflops
  counts them. T-GATE's tables are in this convention. calflops cannot see PyTorch's fused
  attention, so the products ``Q K'`` and ``P V`` are missing from it.
- *With attention* (``macs_with_attention``): the same and every attention product, as
  ``torch.utils.flop_counter`` counts them (halved: it counts a multiply and an add as two).

Why a saving looks different under each. From the gate step on T-GATE drops one of two branches and
all of cross-attention; with intervals it also reuses self-attention. A dropped branch is half of
everything in both conventions. Cross-attention is nearly all Linear layers, since products with
77 to 300 caption tokens are small; self-attention is to a large part products over thousands of
picture tokens. So the with-attention total of an ungated image is larger (SDXL +13%, SD 1.5 +19%,
SD 2.1 +41%, PixArt +52%), and reusing self-attention saves more of it: SDXL at gate 10, interval 5
saves 35.8% as published and 37.5% with attention, PixArt-Alpha at gate 15, interval 3 30.9% and
36.7%; without reuse the two agree within 1.5 points (SDXL at gate 5: 43.5% and 43.3%). Neither
counts norms, activations, softmax or memory traffic, so neither predicts time.

How it is counted. The denoiser is built on PyTorch's meta device (no weights, no arithmetic) and
called through the same hooks as a rendering pipeline, ``tgate_batch.gate``, DeepCache
included; a kind of step that was counted before is not run again.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import diffusers
import torch

from tgate_batch.config import (
    OWN_SCHEDULER,
    Arm,
    Model,
    ResolvedSampling,
    Sampling,
    effective_sampling,
)
from tgate_batch.errors import UserError
from tgate_batch.gate import (
    Action,
    DeepCache,
    GateNotReached,
    GatePlan,
    Plan,
    is_guided,
)
from tgate_batch.gate.pipeline import tracked
from tgate_batch.gate.scheduler_hooks import steps_of_calls
from tgate_batch.gate.supported_denoisers import find_denoiser
from tgate_batch.models import catalogue
from tgate_batch.models.architecture import (
    Architecture,
    ComponentSpec,
    build,
    latent_scale,
    on_meta,
)
from tgate_batch.models.family import Family, empty
from tgate_batch.models.macs.call import Count, count_call
from tgate_batch.models.macs.hollow import count_arm
from tgate_batch.models.resolve import ResolvedModel, architecture_of, resolve_model


@dataclass(frozen=True)
class Macs:
    """The MACs of one image (of one video, for video): of the denoiser and its ControlNet.

    ``semantics_planning`` and ``fidelity_improving`` are the steps before the gate step and from
    it on; without a plan all steps are in the first. ``params`` counts the denoiser's parameters,
    ``params_after_gate`` those that a gated denoiser still reads once cross-attention is reused.
    """

    semantics_planning: Count
    fidelity_improving: Count
    params: int
    params_after_gate: int

    @property
    def per_image(self) -> int:
        """In the published convention."""
        return self.semantics_planning.macs + self.fidelity_improving.macs

    @property
    def per_image_with_attention(self) -> int:
        return (
            self.semantics_planning.macs_with_attention
            + self.fidelity_improving.macs_with_attention
        )

    def columns(self) -> dict[str, int]:
        """As the output's files carry them."""
        return {
            "macs_per_image": self.per_image,
            "macs_per_image_with_attention": self.per_image_with_attention,
        }


def macs_of_arm(model: Model, arm: Arm, sampling: ResolvedSampling) -> Macs:
    """MACs of one image of a run's arm; raises UserError as ``macs_of`` does."""
    resolved, how = resolve_model(model), effective_sampling(sampling, arm)
    if resolved.family.is_generic:
        return generic_macs(*count_arm(resolved.row, resolved.family, resolved.folder, arm, how))
    return _macs(model, resolved, arm.combined_plan, arm.cache, how)


def generic_macs(counted: Count, params: int) -> Macs:
    """The MACs of a pipeline without a gate: all steps are before it."""
    return Macs(counted, Count(), params, params)


def macs_of(
    name: str,
    path: str | None = None,
    *,
    plan: Plan | None = None,
    deepcache: DeepCache | None = None,
    steps: int,
    guidance_scale: float,
    height: int | None = None,
    width: int | None = None,
    scheduler: str = OWN_SCHEDULER,
) -> Macs:
    """MACs of one image of a catalogue model, or of the checkpoint folder at ``path``.

    ``height`` and ``width`` in pixels, None: the documented size. ``scheduler`` is a diffusers
    class (a second-order one calls the denoiser twice a step); the checkpoint's own is the
    folder's, or one call a step. Raises UserError for an unknown model and for settings that the
    gate refuses.
    """
    model = Model(name=name, path=path)
    resolved = resolve_model(model)
    given = {"steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    sampling = catalogue.documented_sampling(resolved.row, Sampling()).model_copy(
        update={key: value for key, value in given.items() if value is not None}
        | {"scheduler": scheduler}
    )
    return _macs(model, resolved, plan, deepcache, sampling)


def _macs(
    model: Model,
    resolved: ResolvedModel,
    plan: Plan | None,
    deepcache: DeepCache | None,
    sampling: ResolvedSampling,
) -> Macs:
    architecture = architecture_of(resolved, model)
    if sampling.scheduler != OWN_SCHEDULER or sampling.scheduler_arguments:
        architecture = _with_scheduler(
            architecture, sampling.scheduler, sampling.scheduler_arguments
        )
    try:
        return count(
            resolved.family,
            architecture,
            plan,
            deepcache,
            sampling.steps_run,
            sampling.guidance_scale,
            height=sampling.height,
            width=sampling.width,
        )
    except ValueError as error:
        raise UserError(f"MACs of {model.name}: {error}") from None


def find_architecture(name: str, path: str | None = None) -> Architecture:
    """The architecture of the model's folder if it has one here, else of its catalogue's row.

    Raises UserError for an unknown model, and where neither is at hand.
    """
    model = Model(name=name, path=path)
    return architecture_of(resolve_model(model), model)


def count(
    family: Family,
    architecture: Architecture,
    plan: Plan | None,
    deepcache: DeepCache | None,
    steps: int,
    guidance_scale: float,
    height: int,
    width: int,
) -> Macs:
    """Runs the steps of one image through the gated denoiser on the meta device and counts them.

    A ControlNet runs beside it at every step, for both branches (in guess mode it would run for
    one), and DeepCache skips nothing of it. ``height`` and ``width`` in pixels. Raises ValueError
    for settings that the gate refuses.
    """
    scale = latent_scale(architecture.vae)
    size = (architecture.tokens, height // scale, width // scale)
    scheduler = build(architecture.scheduler)
    scheduler.set_timesteps(steps)
    plan = None if plan is None else plan.at(steps)
    gate = None if plan is None else plan.part(GatePlan)
    gate_step = steps if gate is None else gate.gate_step
    phases, params = [Count(), Count()], [0, 0]
    parts = [(architecture.denoiser, deepcache)]
    if architecture.controlnet is not None:
        parts += [(architecture.controlnet, None)]
    guided = guidance_scale > 1
    for part, skipping in parts:
        config = json.dumps(dict(part.config), sort_keys=True)
        denoiser = _denoiser(family, part.library, part.class_name, config, *size)
        guided = guided and denoiser.is_guided(guidance_scale)
        for step, counted in denoiser.counts(plan, skipping, scheduler, guided, scale):
            phase = int(step >= gate_step)
            phases[phase] = phases[phase].plus(counted)
        params = [sum(both) for both in zip(params, denoiser.params(), strict=True)]
    return Macs(phases[0], phases[1], *params)


def count_parts(
    family: Family, architecture: Architecture, guided: bool, height: int, width: int
) -> dict[str, tuple[Count, int]]:
    """(MACs of one image, parameters) of each text encoder and of the VAE's decoder, by name.

    ``height`` and ``width`` in pixels.
    """
    batch, scale = 2 if guided else 1, latent_scale(architecture.vae)
    parts = {}
    for name, part in architecture.encoders.items():
        encoder = on_meta(part)
        inputs = family.encoder_inputs(part.config, batch, architecture.tokens)
        parts[name] = count_call(encoder, encoder.forward, (), inputs)[0], _params(encoder)
    vae = on_meta(architecture.vae)
    inputs = family.decoder_inputs(architecture, height // scale, width // scale)
    parts["vae"] = count_call(vae, vae.decode, (), inputs)[0], _params(vae)
    return parts


@dataclass
class _Loop:
    """As much of a diffusers pipeline as the gate asks for."""

    scheduler: Any
    do_classifier_free_guidance: bool = False
    unet: torch.nn.Module | None = None
    transformer: torch.nn.Module | None = None


class _Seen(NamedTuple):
    """One kind of step: its MACs, what it returned and what it left in the caches."""

    macs: Count
    output: Any
    layers: list[tuple[dict[int, torch.Tensor], bool]]
    deepcache: dict


@dataclass
class _Denoiser:
    """A denoiser on the meta device for pictures of one size, and the steps it made before.

    ``find_denoiser`` has what each kind of work counts, ``seen`` what a step does from each state.
    """

    family: Family
    module: Any  # a torch module
    tokens: int
    height: int  # latents
    width: int  # latents
    known: dict[tuple, Count] = field(default_factory=dict)
    seen: dict[tuple, _Seen] = field(default_factory=dict)

    def counts(
        self,
        plan: Plan | None,
        deepcache: DeepCache | None,
        scheduler: Any,
        guided: bool,
        scale: int,
    ) -> Iterator[tuple[int, Count]]:
        """(step, count) of every evaluation that makes one image; ``scale``: pixels a latent."""
        loop = self._loop(scheduler)
        loop.do_classifier_free_guidance = guided
        branches = 2 if guided else 1
        kind = find_denoiser(self.module)
        by_branch = kind is not None and kind.branch_a_call
        calls, batch = (branches, 1) if by_branch else (1, branches)
        size = (self.tokens, self.height, self.width)
        inputs = self.family.inputs(self.module.config, batch, *size)
        if "controlnet_cond" in signature(self.module.forward).parameters:
            channels = self.module.config.conditioning_channels
            picture = empty(batch, channels, scale * self.height, scale * self.width)
            inputs["controlnet_cond"] = picture
        steps = steps_of_calls(scheduler)
        counts: list[Count] = []
        with (
            torch.no_grad(),
            warnings.catch_warnings(action="ignore", category=GateNotReached),
            tracked(loop, plan, guided, deepcache) as gate,
        ):
            forward = self.module.forward

            def remembered(*args: Any, **kwargs: Any) -> Any:
                work, state = _state(_batch(args, kwargs), gate, deepcache)
                if state not in self.seen:
                    if work in self.known:
                        output = forward(*args, **kwargs)
                    else:
                        self.known[work], output = count_call(self.module, forward, args, kwargs)
                    self.seen[state] = _Seen(self.known[work], output, *_caches(gate))
                seen = self.seen[state]
                _restore(gate, seen)
                counts[-1] = counts[-1].plus(seen.macs)
                return seen.output

            self.module.forward = remembered
            try:
                for _ in steps:
                    counts.append(Count())
                    for _ in range(calls):
                        self.module(**inputs)
                    if gate is not None:
                        gate.on_scheduler_step(1)
            finally:
                del self.module.forward
        return zip(steps, counts, strict=True)

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether a pipeline runs it for both branches at this scale."""
        return is_guided(self._loop(None), guidance_scale)

    def _loop(self, scheduler: Any) -> "_Loop":
        return _Loop(scheduler, **{self.family.denoiser: self.module})

    def params(self) -> tuple[int, int]:
        """All parameters; those outside the cross-attention layers."""
        cross = sum(
            _params(layer)
            for layer in self.module.modules()
            if getattr(layer, "is_cross_attention", False)
        )
        return _params(self.module), _params(self.module) - cross


def _batch(args: tuple, kwargs: Mapping[str, Any]) -> int:
    sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    return sample.shape[0]


def _state(batch: int, gate: Any, deepcache: DeepCache | None) -> tuple[tuple, tuple]:
    """What decides the work of the coming step, and with it what the step leaves behind."""
    if gate is None:
        return (batch,), (batch,)
    hook = gate.hooks[0]
    kept = tuple(tuple(cache.shape for cache in layer.caches.values()) for layer in hook.layers)
    actions = (hook.now.cross, hook.now.self_)
    reuses = tuple(action is Action.REUSE for action in actions)
    work: tuple = (batch, reuses, kept) if any(reuses) else (batch,)
    state: tuple = (batch, *actions, hook.now.mean, hook.now.number, kept)
    if deepcache is not None:
        helper = gate.deepcache
        start = helper.cur_timestep if helper.start_timestep is None else helper.start_timestep
        skips = bool((helper.cur_timestep - start) % deepcache.interval)
        work += (deepcache,) if skips else ()
        state += (deepcache, skips)
    return work, state


def _caches(gate: Any) -> tuple[list, dict]:
    if gate is None:
        return [], {}
    layers = [(dict(layer.caches), layer.is_cross) for layer in gate.hooks[0].layers]
    return layers, {} if gate.deepcache is None else dict(gate.deepcache.cached_output)


def _restore(gate: Any, seen: _Seen) -> None:
    if gate is None:
        return
    for layer, (kept, is_cross) in zip(gate.hooks[0].layers, seen.layers, strict=True):
        layer.caches, layer.is_cross = dict(kept), is_cross
    if gate.deepcache is not None:
        gate.deepcache.cached_output.update(seen.deepcache)


@cache
def _denoiser(
    family: Family, library: str, kind: str, config: str, tokens: int, height: int, width: int
) -> _Denoiser:
    module = on_meta(ComponentSpec(library, kind, json.loads(config)))
    return _Denoiser(family, module, tokens, height, width)


def _with_scheduler(
    architecture: Architecture, name: str, arguments: Mapping[str, Any]
) -> Architecture:
    if name == OWN_SCHEDULER:
        name = architecture.scheduler.class_name
    if not hasattr(diffusers, name):
        raise UserError(f"diffusers has no scheduler {name!r}")
    # Every checkpoint with a PNDM scheduler skips its Runge-Kutta steps.
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    own = architecture.scheduler.config
    return replace(
        architecture, scheduler=ComponentSpec("diffusers", name, {**config, **own, **arguments})
    )


def _params(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
