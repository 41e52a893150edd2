"""Gating a pipeline at its denoiser's boundary, for as long as a ``with`` block lasts.

Two kinds of hook work together. A pair around the denoiser counts its calls and, from the
gate step on, lets one branch through and returns its output twice, so that the pipeline's own
guidance ``u + s * (p - u)`` becomes ``u``. One on every attention layer (``layers``) computes,
stores or reuses, as the ``Gate`` says at each step.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tgate_batch.gate.families import kept_branch
from tgate_batch.gate.layers import CurrentActions, GatedAttention, attach
from tgate_batch.gate.plan import Action, DeepCache, GatePlan, StepActions
from tgate_batch.gate.steps import steps_of_calls

_MORE_BRANCHES = {
    "do_perturbed_attention_guidance": "perturbed-attention guidance",
    "image_guidance_scale": "image guidance",
}


@contextmanager
def gated(
    pipe: Any,
    plan: GatePlan | None = None,
    guided: bool = True,
    deepcache: DeepCache | None = None,
) -> Iterator["Gate | None"]:
    """Every call of the diffusers pipeline ``pipe`` inside the block follows ``plan``.

    ``guided`` says whether the calls use classifier-free guidance; see ``is_guided``. With
    ``deepcache`` the DeepCache helper runs around the gate; with neither, nothing changes. The
    pipeline leaves the block as it came, also by an exception, and no cached tensor is kept.
    Inside, call no other pipeline on the same denoiser unless it shares the scheduler too.

    A compiled denoiser has one graph for every kind of step, three to eight a plan and batch size,
    and uses them again in later blocks. Torch stops at eight in all, and runs the rest uncompiled:
    raise ``torch._dynamo.config.recompile_limit``.

    Raises ValueError for a denoiser, a scheduler or a setting that cannot be gated.
    """
    if plan is None and deepcache is None:
        yield None
        return
    denoiser = denoiser_of(pipe)
    _refuse(pipe, denoiser, guided)
    gate = Gate(pipe, denoiser, plan, guided)
    with ExitStack() as stack:
        stack.callback(gate.clear)
        if plan is not None:
            gate.layers = attach(denoiser, gate, stack)
        if deepcache is not None:
            from tgate_batch.gate.deepcache import enabled

            gate.deepcache = stack.enter_context(enabled(pipe, deepcache))
        # Torch's own hooks here: pipelines that offload replace the denoiser's `forward` after
        # every call, and with it a hook that lives there.
        stack.callback(
            denoiser.register_forward_pre_hook(gate.before_denoiser, with_kwargs=True).remove
        )
        stack.callback(denoiser.register_forward_hook(gate.after_denoiser).remove)
        yield gate


def is_guided(pipe: Any, guidance_scale: float) -> bool:
    """Whether ``pipe`` runs both branches at this scale (for video, ``max_guidance_scale``).

    A distilled denoiser takes the scale as an input and never does.
    """
    config = denoiser_of(pipe).config
    distilled = getattr(config, "time_cond_proj_dim", None) is not None
    return guidance_scale > 1 and not distilled


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The module that ``pipe`` calls once a step; raises ValueError if it has none."""
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ValueError(
        f"{type(pipe).__name__} has neither a unet nor a transformer, so there is no denoiser to "
        "gate; use a text-to-image or image-to-video pipeline of diffusers"
    )


class Gate(CurrentActions):
    """How far the current pipeline call is; one for a block, shared by all of its hooks."""

    def __init__(
        self, pipe: Any, denoiser: torch.nn.Module, plan: GatePlan | None, guided: bool
    ) -> None:
        super().__init__()
        self.layers: list[GatedAttention] = []
        self.deepcache: Any = None
        self._pipe = pipe
        self._plan = plan
        self._told_guided = guided
        self._kept = kept_branch(denoiser)
        self._timesteps: torch.Tensor | None = None
        self._halved = False

    @property
    def cached_bytes(self) -> int:
        """Bytes of attention output that the layers hold at this moment."""
        caches = (layer.cache for layer in self.layers)
        return sum(cache.nbytes for cache in caches if cache is not None)

    def clear(self) -> None:
        """Forgets the pipeline call and frees every cached tensor."""
        self.cross = self.self_ = Action.COMPUTE
        self._timesteps = None
        for layer in self.layers:
            layer.cache = None

    @torch.compiler.disable
    def before_denoiser(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> Any:
        """Counts the call; halves what it was given once the gate has closed."""
        sample: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        # `set_timesteps`, with which every pipeline call begins, makes a new tensor.
        if self._pipe.scheduler.timesteps is not self._timesteps:
            self._begin_call(sample)
        self._next_step(sample.shape[0])
        if not self._halved:
            return None
        return _branch(args, self._batch, self._kept), _branch(kwargs, self._batch, self._kept)

    @torch.compiler.disable
    def after_denoiser(self, module: torch.nn.Module, args: tuple, output: Any) -> Any:
        """Frees the caches after the last step; returns one branch's output as two."""
        if self._call == len(self._steps):
            for layer in self.layers:
                layer.cache = None
        return _twice(output) if self._halved else None

    def _begin_call(self, sample: torch.Tensor) -> None:
        self.clear()
        self._steps = steps_of_calls(self._pipe.scheduler)
        self._table: tuple[StepActions, ...] = ()
        if self._plan is not None:
            count = self._steps[-1] + 1
            self._table = self._plan.schedule(count, skips=self.deepcache is not None)
        _check_guidance(self._pipe, self._told_guided, sample)
        self._guided = self._told_guided
        self._batch = sample.shape[0]
        self._call = 0
        self._step = -1
        self._timesteps = self._pipe.scheduler.timesteps

    def _next_step(self, batch: int) -> None:
        if self._call == len(self._steps):
            raise ValueError(
                f"{type(self._pipe.scheduler).__name__} set {self._call} timesteps and the "
                "denoiser is called once more, so its steps cannot be counted; use DDIM, Euler or "
                "DPM++ multistep"
            )
        guidance_ends = self._guided and batch * 2 == self._batch
        if guidance_ends:
            self._drop_negative_branch()
        elif batch != self._batch:
            raise ValueError(
                f"the denoiser's batch went from {self._batch} to {batch} within one pipeline "
                "call, so stored attention no longer fits; keep the batch as it is"
            )
        before, self._step = self._step, self._steps[self._call]
        if self._plan is not None:
            self._act(is_new=self._step != before)
        if self.deepcache is not None:
            around = self._plan is not None and 0 <= self._step - self._plan.gate_step + 1 <= 1
            full = self._call == 0 or guidance_ends or (around and self._step != before)
            self.deepcache.at_call(self._call, full)
        self._call += 1

    def _act(self, is_new: bool) -> None:
        actions = self._table[self._step]
        self.cross, self.self_ = actions.cross, actions.self_
        self.mean = actions.mean and self._guided
        self._halved = self._guided and not actions.guided
        if is_new and self.self_ is not Action.REUSE and self.deepcache is None:
            for layer in self.layers:  # nothing reads these any more
                if not layer.is_cross:
                    layer.cache = None

    def _drop_negative_branch(self) -> None:
        """A callback turned guidance off: go on with what was stored for the positive branch."""
        self._guided = False
        self._batch //= 2
        if self._plan is not None and self._step < self._plan.gate_step - 1:
            for layer in self.layers:
                if layer.cache is not None:
                    layer.cache = layer.cache.chunk(2)[1]


def _refuse(pipe: Any, denoiser: torch.nn.Module, guided: bool) -> None:
    hooks = denoiser._forward_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), Gate) for hook in hooks):
        raise ValueError("this pipeline is already gated; leave the outer block first")
    for attribute, name in _MORE_BRANCHES.items():
        if guided and hasattr(type(pipe), attribute):
            raise ValueError(
                f"{type(pipe).__name__} adds {name} as a further branch, and T-GATE halves a batch "
                "of two; use the pipeline without it"
            )


def _check_guidance(pipe: Any, told: bool, sample: torch.Tensor) -> None:
    """Raises ValueError where the pipeline contradicts what ``gated`` was told.

    PixArt's pipelines do not say; there a guided batch shows by its two equal halves.
    """
    actual = getattr(pipe, "do_classifier_free_guidance", None)
    if actual is None and told and not sample.is_meta:
        actual = sample.shape[0] % 2 == 0 and torch.equal(*sample.chunk(2))
    if actual is not None and bool(actual) != told:
        raise ValueError(
            f"gated(guided={told}) but {type(pipe).__name__} runs "
            f"{'with' if actual else 'without'} guidance here, so branches or pictures would be "
            "mixed; pass guided=is_guided(pipe, guidance_scale)"
        )


def _branch(value: Any, batch: int, index: int) -> Any:
    """``value`` with every tensor of ``batch`` rows cut to its half ``index`` (0 or 1)."""
    if isinstance(value, torch.Tensor):
        if value.ndim > 0 and value.shape[0] == batch:
            return value[batch // 2 * index : batch // 2 * (index + 1)]
        return value
    if isinstance(value, dict):
        return {key: _branch(item, batch, index) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_branch(item, batch, index) for item in value)
    return value


def _twice(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return torch.cat([output, output])
    if isinstance(output, dict):
        return type(output)(**{key: _twice(item) for key, item in output.items()})
    return type(output)(_twice(item) for item in output)
