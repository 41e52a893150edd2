"""T-GATE and its rivals as a small library: torch and diffusers, no pipeline code copied.

    with gated(pipe, GatePlan(gate_step=10, sp_interval=5, warm_up=2)):
        pipe("an astronaut riding a horse", num_inference_steps=25)

A plan is a table of one row per step (``table``). ``plan`` has the kinds of plans, which make such
tables; ``layers`` executes the columns of attention, ``denoiser_hook`` those of guidance branches
and forecasts; ``step_tracker`` and ``scheduler_hooks`` read from a pipeline call which row is next;
``pipeline`` installs and removes the hooks. ``supported_denoisers`` lists the supported models,
``memory`` computes what is stored, and ``loaders`` has the reference's API. torch and diffusers are
imported on first use.

Source: "Faster Diffusion via Temporal Attention Decomposition", arXiv 2404.02747, and its
reference implementation, HaozheLiu-ST/T-GATE (the PyPI package ``tgate`` 1.0.0).
"""

from importlib import import_module

from tgate_batch.gate.plan import (
    Combination,
    DeepCache,
    Forecast,
    GatePlan,
    GuidanceInterval,
    Plan,
    SelfAttentionInterval,
    combined,
)
from tgate_batch.gate.table import Action, StepActions, text_of

_LAZY = {
    "GateNotReached": "step_tracker",
    "Summary": "step_tracker",
    "cache_bytes": "memory",
    "denoiser_of": "pipeline",
    "disable_tgate": "pipeline",
    "enable_tgate": "pipeline",
    "gated": "pipeline",
    "is_guided": "pipeline",
}

__all__ = [
    "Action",
    "Combination",
    "DeepCache",
    "Forecast",
    "GateNotReached",
    "GatePlan",
    "GuidanceInterval",
    "Plan",
    "SelfAttentionInterval",
    "StepActions",
    "Summary",
    "cache_bytes",
    "combined",
    "denoiser_of",
    "disable_tgate",
    "enable_tgate",
    "gated",
    "is_guided",
    "text_of",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
