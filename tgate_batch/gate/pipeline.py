"""Lets a pipeline follow a plan inside a ``with`` block, or until it is disabled."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakSet, ref

import torch

from tgate_batch.gate.denoiser_hook import DenoiserHook
from tgate_batch.gate.plan import (
    DeepCache,
    GatePlan,
    GuidanceInterval,
    Plan,
    SelfAttentionInterval,
)
from tgate_batch.gate.step_tracker import StepTracker, Summary
from tgate_batch.gate.supported_denoisers import (
    DenoiserTraits,
    denoiser_traits,
    documented_plan,
    find_denoiser,
)

Choice = Plan | Literal["documented"] | None

_gated: WeakSet[Any] = WeakSet()  # modules of open blocks
_ENABLED = "_tgate_enabled"  # the attribute in which a pipeline keeps its own `_Enabled`


@contextmanager
def gated(
    pipe: Any,
    plan: Choice = "documented",
    guided: bool | None = None,
    deepcache: DeepCache | None = None,
) -> Iterator[Summary]:
    """Every call of the diffusers pipeline ``pipe`` inside the block follows ``plan``.

    By default that is the plan of T-GATE's documents for its class; ``combined`` makes one plan of
    several. Whether guidance runs is read from the calls; ``guided`` asserts it, and a
    ``GuidanceInterval`` that begins late needs to be told. With ``deepcache`` the DeepCache helper
    runs around the plan; with no plan and none of it, nothing changes. ControlNets follow the same
    plan. What the calls did is in the summary, call after call. The pipeline leaves the block as it
    came, also by an exception, and no stored tensor outlives a pipeline call's loop.

    Captions (``prompt_embeds``) and scales of adapters and LoRAs that change after the gate do not
    act through stored cross-attention.

    A compiled denoiser has one graph for every kind of step, three to eight a plan and batch size,
    and uses them again in later blocks. Torch stops at eight in all, and runs the rest uncompiled:
    raise ``torch._dynamo.config.recompile_limit``.

    Raises ValueError for a denoiser, a scheduler or a setting that cannot be gated, and inside the
    block at the step of a pipeline call that cannot be read.
    """
    with tracked(pipe, plan, guided, deepcache) as call:
        yield call.summary if call is not None else Summary()


@contextmanager
def tracked(
    pipe: Any, plan: Choice, guided: bool | None = None, deepcache: DeepCache | None = None
) -> Iterator[StepTracker | None]:
    """``gated``, but yields the ``StepTracker``; None if there is nothing to change."""
    if plan is None and deepcache is None:
        yield None
        return
    denoiser = denoiser_of(pipe)
    plan = documented_plan(pipe, denoiser) if plan == "documented" else plan
    parts = () if plan is None else plan.parts
    gate, layers = (
        any(isinstance(part, kinds) for part in parts)
        for kinds in (GatePlan, GatePlan | SelfAttentionInterval)
    )
    interval = None if plan is None else plan.part(GuidanceInterval)
    if interval is not None and interval.weights:
        _check_scale(pipe, interval)
        guided = True if guided is None else guided
    if interval is not None and interval.begins_late and guided is None:
        raise ValueError(
            f"guidance that begins at step {interval.first} cannot be detected at the first step. "
            "Fix: give guided=True, or guided=False for calls without guidance"
        )
    traits = DenoiserTraits()
    if layers or interval is not None:
        traits = denoiser_traits(denoiser, attention=layers)
    elif plan is not None:  # whatever its branches are, they are forecast
        traits = find_denoiser(denoiser, attention=False) or DenoiserTraits(branch_a_call=True)
    _refuse(pipe, denoiser)
    hooks = [DenoiserHook(denoiser, traits)]
    if plan is not None:
        nets = _controls(pipe, denoiser)
        hooks += [DenoiserHook(net, denoiser_traits(net), leads=False) for net in nets]
    if any(hook.module in _gated for hook in hooks):
        raise ValueError(
            "a ControlNet of this pipeline is already gated in another one. Fix: exit that block "
            "first"
        )
    if not gate:  # the caption's branch is the one that runs alone
        for hook in hooks:
            hook.traits = replace(hook.traits, kept_branch=1)
    with ExitStack() as stack:
        for hook in hooks:
            _gated.add(hook.module)
            stack.callback(_gated.discard, hook.module)
        call = StepTracker(pipe, plan, hooks, guided)
        for hook in hooks:
            hook.follow(call.on_denoiser_call, call.on_denoiser_return, layers, stack)
        if deepcache is not None:
            from tgate_batch.gate.deepcache import enabled

            call.deepcache = stack.enter_context(enabled(pipe, deepcache))
        call.watch(stack)
        yield call


class _Enabled(ExitStack):
    """What ends ``enable_tgate``. Only the pipeline refers to it, so both are freed together."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.pipe = ref(pipe)

    def __deepcopy__(self, memo: dict) -> "_Enabled":
        """A copied pipeline is not enabled: it is not the one this refers to."""
        return self


def enable_tgate(pipe: Any, plan: Choice = "documented", **options: Any) -> Summary:
    """``gated`` without a block: until ``disable_tgate``. Takes and raises what ``gated`` does."""
    enabled = _Enabled(pipe)
    summary = enabled.enter_context(gated(pipe, plan, **options))
    vars(pipe)[_ENABLED] = enabled
    return summary


def disable_tgate(pipe: Any) -> None:
    """Ends ``enable_tgate``; a pipeline that is not enabled stays as it is."""
    enabled = vars(pipe).get(_ENABLED)
    if enabled is not None and enabled.pipe() is pipe:
        del vars(pipe)[_ENABLED]
        enabled.close()


def is_guided(pipe: Any, guidance_scale: float) -> bool:
    """Whether ``pipe`` runs both branches at this scale (for video, ``max_guidance_scale``).

    A distilled denoiser takes the scale as an input and never does.
    """
    config = denoiser_of(pipe).config
    conditioned = getattr(config, "time_cond_proj_dim", None) is not None
    return guidance_scale > 1 and not (conditioned or getattr(config, "guidance_embeds", False))


def denoiser_of(pipe: Any) -> Any:
    """The module that ``pipe`` calls once a step; raises ValueError if it has none."""
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ValueError(
        f"{type(pipe).__name__} has neither a unet nor a transformer, so there is no denoiser to "
        "gate; use a text-to-image or image-to-video pipeline of diffusers"
    )


def _controls(pipe: Any, denoiser: Any) -> list[torch.nn.Module]:
    """The ControlNets of a pipeline, each once; raises ValueError where the gate knows none."""
    control = getattr(pipe, "controlnet", None)
    if control is None:
        return []
    plain = getattr(denoiser, "_orig_mod", denoiser)
    if type(plain).__name__ != "UNet2DConditionModel":
        raise ValueError(
            f"a {type(control).__name__} beside {type(plain).__name__} runs on other rows than it "
            "does, so the gate cannot follow both; leave one of them out"
        )
    return list(dict.fromkeys(getattr(control, "nets", [control])))


def _refuse(pipe: Any, denoiser: Any) -> None:
    name = type(pipe).__name__
    if denoiser in _gated:
        raise ValueError("this pipeline is already gated. Fix: exit the outer block first")
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError(
            f"{name} switches to a second transformer, which has nothing stored. Fix: use a "
            "pipeline with one transformer (Wan 2.1)"
        )
    if getattr(pipe, "scheduler", None) is None:
        raise ValueError(f"{name} has no scheduler, from which the gate reads its steps")
    forwards = (vars(module).get("forward") for module in denoiser.modules())
    if any(getattr(forward, "__module__", "").startswith("DeepCache") for forward in forwards):
        raise ValueError(
            f"a DeepCache helper is already enabled on this {name}. Fix: call its disable(), and "
            "give gated(..., deepcache=DeepCache(...)) instead"
        )
    if getattr(denoiser, "is_cache_enabled", False):
        raise ValueError(
            f"a cache of diffusers ({type(denoiser._cache_config).__name__}) is enabled on this "
            f"{name}, and it counts the same calls. Fix: call disable_cache() on its denoiser first"
        )


def _check_scale(pipe: Any, interval: GuidanceInterval) -> None:
    """Raises ValueError for guidance weights that this pipeline would not turn into scales."""
    config = denoiser_of(pipe).config
    if getattr(config, "time_cond_proj_dim", None) or getattr(config, "guidance_embeds", False):
        raise ValueError(
            f"{type(pipe).__name__} takes its guidance scale as an input of a distilled denoiser, "
            "so weights of two branches do not act. Fix: leave weights out"
        )
