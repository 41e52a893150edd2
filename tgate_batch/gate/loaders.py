"""The API of the reference implementation (tgate 1.0.0 and 0.1), on top of ``gated``.

    pipe = TgateSDXLLoader(pipe).to("cuda")
    image = pipe.tgate("an astronaut", gate_step=10, num_inference_steps=25).images[0]

A plain ``pipe(...)`` stays ungated, before and after.
"""

from types import MethodType
from typing import Any

from tgate_batch.gate.pipeline import gated
from tgate_batch.gate.plan import DeepCache, GatePlan

_DEFAULT = GatePlan(10, sp_interval=5, fi_interval=1, warm_up=2)
_VERSION_0_1 = {"num_inference_steps", "lcm"}  # its loaders took these too


def TgateSDLoader(pipe: Any, **settings: Any) -> Any:
    """Adds the method ``pipe.tgate(...)`` to ``pipe`` and returns ``pipe``.

    The method takes the pipeline's arguments and ``gate_step, sp_interval, fi_interval, warm_up``,
    by default 10, 5, 1, 2. Values given here become the defaults; those left out then gate
    cross-attention only, as ``gate_step`` alone did in version 0.1. ``lcm`` is accepted in both
    places and ignored: guidance is read from the call. Raises TypeError for any other name.
    """
    plan = {name: value for name, value in settings.items() if name not in _VERSION_0_1}
    return with_tgate(pipe, GatePlan(**{"gate_step": 10} | plan) if plan else _DEFAULT)


def TgateSDDeepCacheLoader(pipe: Any, cache_interval: int = 3, cache_branch_id: int = 0) -> Any:
    """``TgateSDLoader`` with DeepCache; by default cross-attention is gated at step 10."""
    return with_tgate(pipe, GatePlan(10), DeepCache(cache_interval, cache_branch_id))


TgateSDXLLoader = TgateSVDLoader = TgateSDLoader
TgatePixArtLoader = TgatePixArtAlphaLoader = TgatePixArtSigmaLoader = TgateSDLoader
TgateSDXLDeepCacheLoader = TgateSDDeepCacheLoader


def with_tgate(pipe: Any, default: GatePlan, deepcache: DeepCache | None = None) -> Any:
    """Adds the method ``pipe.tgate(...)``, whose settings default to the plan's."""

    def tgate(
        self: Any,
        *arguments: Any,
        gate_step: int | float = default.gate_step,
        sp_interval: int = default.sp_interval,
        fi_interval: int = default.fi_interval,
        warm_up: int = default.warm_up,
        lcm: bool = False,
        **call: Any,
    ) -> Any:
        plan = GatePlan(gate_step, sp_interval, fi_interval, warm_up)
        with gated(self, plan, deepcache=deepcache):
            return self(*arguments, **call)

    pipe.tgate = MethodType(tgate, pipe)
    return pipe
