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
called through the same hooks as a rendering pipeline, ``tgate_batch.gate.gated``, DeepCache
included; a kind of step that was counted before is not run again.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers

from tgate_batch import demo
from tgate_batch.errors import UserError
from tgate_batch.gate import Action, DeepCache, GatePlan, gated, is_guided
from tgate_batch.gate.steps import steps_of_calls
from tgate_batch.models.architectures import (
    ARCHITECTURES,
    Architecture,
    Part,
    latent_scale,
    read_architecture,
)
from tgate_batch.models.call_macs import Count, count_call


@dataclass(frozen=True)
class Macs:
    """The denoiser's MACs of one image (of one video, for video).

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


def macs_of(
    name: str,
    path: str | None = None,
    *,
    plan: GatePlan | None = None,
    deepcache: DeepCache | None = None,
    steps: int,
    guidance_scale: float,
    height: int | None = None,
    width: int | None = None,
    scheduler: str | None = None,
) -> Macs:
    """MACs of one image of a catalogue model, or of the checkpoint folder at ``path``.

    ``height`` and ``width`` in pixels, None: the documented size. ``scheduler`` is a diffusers
    class (a second-order one calls the denoiser twice a step), None: the folder's own, or one
    call a step. Raises UserError for a model that is neither known nor a folder, and for settings
    that the gate refuses.
    """
    architecture = find_architecture(name, path)
    if scheduler is not None:
        architecture = _with_scheduler(architecture, scheduler)
    try:
        return count(architecture, plan, deepcache, steps, guidance_scale, height, width)
    except ValueError as error:
        raise UserError(f"MACs of {name}: {error}") from None


def find_architecture(name: str, path: str | None = None) -> Architecture:
    """The architecture of a local pipeline folder, else of the catalogue's row ``name``."""
    folder = path or (str(demo.PATH) if name == "demo" else None)
    if folder is not None and Path(folder).expanduser().is_dir():
        return read_architecture(folder)
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise UserError(
        f"the architecture of {name!r} is not known offline; give a local checkpoint folder, or "
        f"one of: {', '.join(ARCHITECTURES)}"
    )


def count(
    architecture: Architecture,
    plan: GatePlan | None,
    deepcache: DeepCache | None,
    steps: int,
    guidance_scale: float,
    height: int | None = None,
    width: int | None = None,
) -> Macs:
    """Runs the steps of one image through the gated denoiser on the meta device and counts them.

    Raises ValueError for settings that the gate refuses.
    """
    denoiser = _denoiser(
        architecture.denoiser.kind,
        json.dumps(dict(architecture.denoiser.config), sort_keys=True),
        architecture.tokens,
        (height or architecture.height) // latent_scale(architecture.vae),
        (width or architecture.width) // latent_scale(architecture.vae),
    )
    scheduler = _build(architecture.scheduler)
    scheduler.set_timesteps(steps)
    phases = [Count(), Count()]
    for step, counted in denoiser.counts(plan, deepcache, scheduler, guidance_scale):
        phase = int(plan is not None and step >= plan.gate_step)
        phases[phase] = phases[phase].plus(counted)
    return Macs(*phases, *denoiser.params())


def count_parts(
    architecture: Architecture,
    guided: bool,
    height: int | None = None,
    width: int | None = None,
) -> dict[str, tuple[Count, int]]:
    """(MACs of one image, parameters) of each text encoder and of the VAE's decoder, by name."""
    batch = 2 if guided else 1
    parts = {}
    for name, part in architecture.encoders.items():
        encoder = _on_meta(part)
        if name == "image_encoder":
            side = part.config["image_size"]
            inputs = {"pixel_values": _empty(batch, 3, side, side)}
        else:
            ids = torch.zeros(batch, architecture.tokens, dtype=torch.long, device="meta")
            inputs = {"input_ids": ids}
        parts[name] = count_call(encoder, encoder.forward, (), inputs)[0], _params(encoder)
    vae = _on_meta(architecture.vae)
    scale = latent_scale(architecture.vae)
    frames = architecture.denoiser.config.get("num_frames", 1)
    latents = _empty(
        frames,
        architecture.vae.config.get("latent_channels", 4),
        (height or architecture.height) // scale,
        (width or architecture.width) // scale,
    )
    extra = {} if frames == 1 else {"num_frames": frames}
    parts["vae"] = count_call(vae, vae.decode, (latents,), extra)[0], _params(vae)
    return parts


@dataclass
class _Loop:
    """As much of a diffusers pipeline as the gate asks for."""

    scheduler: Any
    do_classifier_free_guidance: bool = False
    unet: torch.nn.Module | None = None
    transformer: torch.nn.Module | None = None


class _Seen(NamedTuple):
    """One kind of step: its count, what it returned and what it left in the caches."""

    count: Count
    output: Any
    layers: list[tuple[torch.Tensor | None, bool]]
    deepcache: dict


@dataclass
class _Denoiser:
    """A denoiser on the meta device for pictures of one size, and the steps it made before.

    ``known`` has what each kind of work counts, ``seen`` what a step does from each state.
    """

    module: torch.nn.Module
    tokens: int
    height: int  # latents
    width: int  # latents
    known: dict[tuple, Count] = field(default_factory=dict)
    seen: dict[tuple, _Seen] = field(default_factory=dict)

    def counts(
        self,
        plan: GatePlan | None,
        deepcache: DeepCache | None,
        scheduler: Any,
        guidance_scale: float,
    ) -> Iterator[tuple[int, Count]]:
        """(step, count) of every call of the denoiser that makes one image."""
        name = "transformer" if hasattr(self.module, "transformer_blocks") else "unet"
        loop = _Loop(scheduler, **{name: self.module})
        guided = is_guided(loop, guidance_scale)
        loop.do_classifier_free_guidance = guided
        inputs = self._inputs(2 if guided else 1)
        steps = steps_of_calls(scheduler)
        found: list[Count] = []
        with torch.no_grad(), gated(loop, plan, guided, deepcache) as gate:
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
                found.append(seen.count)
                return seen.output

            self.module.forward = remembered
            try:
                for _ in steps:
                    self.module(**inputs)
            finally:
                del self.module.forward
        return zip(steps, found, strict=True)

    def params(self) -> tuple[int, int]:
        """All parameters; those outside the cross-attention layers."""
        cross = sum(
            _params(layer)
            for layer in self.module.modules()
            if getattr(layer, "is_cross_attention", False)
        )
        return _params(self.module), _params(self.module) - cross

    def _inputs(self, batch: int) -> dict[str, Any]:
        config = self.module.config
        size = (self.height, self.width)
        if "num_frames" in config:
            return {
                "sample": _empty(batch, config.num_frames, config.in_channels, *size),
                "timestep": _empty(),
                "encoder_hidden_states": _empty(batch, self.tokens, config.cross_attention_dim),
                "added_time_ids": _empty(batch, 3),
            }
        if "caption_channels" in config:
            sized = self.module.use_additional_conditions
            shapes = {"resolution": (batch, 2), "aspect_ratio": (batch, 1)}
            return {
                "hidden_states": _empty(batch, config.in_channels, *size),
                "timestep": _empty(batch),
                "encoder_hidden_states": _empty(batch, self.tokens, config.caption_channels),
                "encoder_attention_mask": _empty(batch, self.tokens),
                "added_cond_kwargs": {
                    name: _empty(*shape) if sized else None for name, shape in shapes.items()
                },
            }
        inputs: dict[str, Any] = {
            "sample": _empty(batch, config.in_channels, *size),
            "timestep": _empty(),
            "encoder_hidden_states": _empty(batch, self.tokens, config.cross_attention_dim),
        }
        if config.time_cond_proj_dim is not None:
            inputs["timestep_cond"] = _empty(batch, config.time_cond_proj_dim)
        if config.addition_embed_type == "text_time":
            times = 6 * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - times
            inputs["added_cond_kwargs"] = {
                "text_embeds": _empty(batch, pooled),
                "time_ids": _empty(batch, 6),
            }
        return inputs


def _batch(args: tuple, kwargs: Mapping[str, Any]) -> int:
    sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    return sample.shape[0]


def _state(batch: int, gate: Any, deepcache: DeepCache | None) -> tuple[tuple, tuple]:
    """What decides the work of the coming step, and with it what the step leaves behind."""
    if gate is None:
        return (batch,), (batch,)
    kept = tuple(None if layer.cache is None else layer.cache.shape for layer in gate.layers)
    actions = (gate.cross, gate.self_)
    reuses = tuple(action is Action.REUSE for action in actions)
    work: tuple = (batch, reuses, kept) if any(reuses) else (batch,)
    state: tuple = (batch, *actions, gate.mean, kept)
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
    layers = [(layer.cache, layer.is_cross) for layer in gate.layers]
    return layers, {} if gate.deepcache is None else dict(gate.deepcache.cached_output)


def _restore(gate: Any, seen: _Seen) -> None:
    if gate is None:
        return
    for layer, (kept, is_cross) in zip(gate.layers, seen.layers, strict=True):
        layer.cache, layer.is_cross = kept, is_cross
    if gate.deepcache is not None:
        gate.deepcache.cached_output.update(seen.deepcache)


@cache
def _denoiser(kind: str, config: str, tokens: int, height: int, width: int) -> _Denoiser:
    return _Denoiser(_on_meta(Part("diffusers", kind, json.loads(config))), tokens, height, width)


def _with_scheduler(architecture: Architecture, name: str) -> Architecture:
    if not hasattr(diffusers, name):
        raise UserError(f"diffusers has no scheduler {name!r}")
    # Every checkpoint with a PNDM scheduler skips its Runge-Kutta steps.
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    own = architecture.scheduler.config
    return replace(architecture, scheduler=Part("diffusers", name, {**config, **own}))


def _build(part: Part) -> Any:
    """The part from its configuration alone."""
    if part.library == "diffusers":
        return getattr(diffusers, part.kind).from_config(dict(part.config))
    kind = getattr(transformers, part.kind)
    return kind(kind.config_class.from_dict(dict(part.config)))


def _on_meta(part: Part) -> torch.nn.Module:
    with torch.device("meta"):
        module = _build(part)
    return module.to("meta").eval()


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _params(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
