"""T-GATE as a small library: torch and diffusers, no pipeline code copied.

    with gated(pipe, GatePlan(gate_step=10, sp_interval=5, warm_up=2)):
        pipe("an astronaut riding a horse", num_inference_steps=25)

``plan`` defines what an attention layer does at a step; ``layers`` does it; ``body`` removes a
guidance branch from a denoiser; ``call`` tracks the pipeline call; ``pipeline`` installs and
removes the hooks. ``families`` lists the supported models, ``memory`` computes cache sizes, and
``loaders`` has the reference's API. torch and diffusers are imported on first use.

Source: "Faster Diffusion via Temporal Attention Decomposition", arXiv 2404.02747, and its
reference implementation, HaozheLiu-ST/T-GATE (the PyPI package ``tgate`` 1.0.0).
"""

from importlib import import_module

from tgate_batch.gate.plan import Action, DeepCache, GatePlan, GuidanceInterval, StepActions

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
    "DeepCache",
    "GateNotReached",
    "GatePlan",
    "GuidanceInterval",
    "StepActions",
    "Summary",
    "cache_bytes",
    "denoiser_of",
    "disable_tgate",
    "enable_tgate",
    "gated",
    "is_guided",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
