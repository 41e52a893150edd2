"""T-GATE as a small library: torch and diffusers, no pipeline code copied.

    with gated(pipe, GatePlan(gate_step=10, sp_interval=5, warm_up=2)):
        pipe("an astronaut riding a horse", num_inference_steps=25)

``plan`` says what an attention layer does at a step, ``hooks`` does it, ``memory`` says what it
costs, ``loaders`` has the reference's names. Nothing heavy is imported until it is asked for.

Source: "Faster Diffusion via Temporal Attention Decomposition", arXiv 2404.02747, and its
reference implementation, HaozheLiu-ST/T-GATE (the PyPI package ``tgate`` 1.0.0).
"""

from importlib import import_module

from tgate_batch.gate.plan import Action, DeepCache, GatePlan, StepActions

__all__ = [
    "Action",
    "DeepCache",
    "GatePlan",
    "StepActions",
    "cache_bytes",
    "denoiser_of",
    "gated",
    "is_guided",
]

_LAZY = {
    "cache_bytes": "memory",
    "denoiser_of": "hooks",
    "gated": "hooks",
    "is_guided": "hooks",
}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
