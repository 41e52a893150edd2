"""The reference's names and calls (tgate 1.0.0 and 0.1), on ``gated``.

    pipe = TgateSDXLLoader(pipe).to("cuda")
    image = pipe.tgate("an astronaut", gate_step=10, num_inference_steps=25).images[0]

A plain ``pipe(...)`` stays ungated, before and after.
"""

import inspect
from types import MethodType
from typing import Any

from tgate_batch.gate.hooks import gated, is_guided
from tgate_batch.gate.plan import DeepCache, GatePlan


def TgateSDLoader(pipe: Any, gate_step: int | None = None, **_: Any) -> Any:
    """Gives ``pipe`` the method ``pipe.tgate(...)`` and returns it.

    It takes the pipeline's own arguments and ``gate_step, sp_interval, fi_interval, warm_up``, by
    default 10, 5, 1, 2. ``gate_step`` here is the form of version 0.1, whose plan gates
    cross-attention only. ``lcm`` is accepted, at either place: whether guidance runs is asked of
    the pipeline.
    """
    if gate_step is None:
        return with_tgate(pipe, GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2))
    return with_tgate(pipe, GatePlan(gate_step))


def TgateSDDeepCacheLoader(pipe: Any, cache_interval: int = 3, cache_branch_id: int = 0) -> Any:
    """The same with DeepCache around the gate; by default cross-attention is gated at 10."""
    return with_tgate(pipe, GatePlan(10), DeepCache(cache_interval, cache_branch_id))


TgateSDXLLoader = TgateSVDLoader = TgateSDLoader
TgatePixArtLoader = TgatePixArtAlphaLoader = TgatePixArtSigmaLoader = TgateSDLoader
TgateSDXLDeepCacheLoader = TgateSDDeepCacheLoader


def with_tgate(pipe: Any, default: GatePlan, deepcache: DeepCache | None = None) -> Any:
    """Gives ``pipe`` the method ``pipe.tgate(...)``, whose settings default to the plan's."""

    def tgate(
        self: Any,
        *arguments: Any,
        gate_step: int = default.gate_step,
        sp_interval: int = default.sp_interval,
        fi_interval: int = default.fi_interval,
        warm_up: int = default.warm_up,
        lcm: bool = False,
        **call: Any,
    ) -> Any:
        plan = GatePlan(gate_step, sp_interval, fi_interval, warm_up)
        guided = is_guided(self, _guidance_scale(self, arguments, call))
        with gated(self, plan, guided=guided, deepcache=deepcache):
            return self(*arguments, **call)

    pipe.tgate = MethodType(tgate, pipe)
    return pipe


def _guidance_scale(pipe: Any, arguments: tuple, call: dict[str, Any]) -> Any:
    """The scale that a call would use, the pipeline's default included."""
    bound = inspect.signature(pipe.__call__).bind_partial(*arguments, **call)
    bound.apply_defaults()
    return bound.arguments.get("max_guidance_scale", bound.arguments.get("guidance_scale"))
