"""Supported denoiser classes, and what the gate cannot infer from a call.

A call shows which layers are cross-attention, but not whether their keys depend on the caption only
and stay the same at every step (they do not in PRX, Stable Cascade or LTX-2). A class is listed
once this is known; the gate refuses all others.
"""

from dataclasses import dataclass
from typing import Any

from tgate_batch.gate.plan import GatePlan


@dataclass(frozen=True)
class DenoiserTraits:
    """One supported class of denoisers.

    ``kept_branch``: the half of a guided batch that runs after the gate: 0 the negative (T-GATE's
    choice for text), 1 the positive one. ``plan``: the plan in T-GATE's documentation, None if it
    has none for the class. ``branch_a_call``: True if pipelines call it once per branch, the
    positive one first. ``rows_per_frame``: captions are repeated for each frame.
    """

    kept_branch: int = 0
    plan: GatePlan | None = None
    branch_a_call: bool = False
    rows_per_frame: bool = False

    @property
    def calls(self) -> int:
        """The most calls of the denoiser in one step."""
        return 2 if self.branch_a_call else 1


# Plans: HaozheLiu-ST/T-GATE, README.md, and main.py for video.
DENOISERS = {
    "UNet2DConditionModel": DenoiserTraits(plan=GatePlan(10, sp_interval=5, warm_up=2)),
    "PixArtTransformer2DModel": DenoiserTraits(plan=GatePlan(15, sp_interval=3, warm_up=2)),
    # The image is part of its input, not only of its attention, and the negative branch has no
    # image, so the positive branch is kept (HaozheLiu-ST/T-GATE, tgate/SVD.py).
    "UNetSpatioTemporalConditionModel": DenoiserTraits(kept_branch=1, plan=GatePlan(10)),
    "UNetMotionModel": DenoiserTraits(rows_per_frame=True),
    "SanaTransformer2DModel": DenoiserTraits(),
    "WanTransformer3DModel": DenoiserTraits(branch_a_call=True),
    # They run on the rows of a UNet2DConditionModel.
    "ControlNetModel": DenoiserTraits(),
    "ControlNetUnionModel": DenoiserTraits(),
}
# Other denoisers whose branches are known, for plans that leave attention as it is (diffusers,
# pipelines/): the negative half of a batch first, or one call per branch, the positive one first.
_IN_ONE_BATCH = (
    "AuraFlowTransformer2DModel",
    "HunyuanDiT2DModel",
    "LTXVideoTransformer3DModel",
    "MochiTransformer3DModel",
    "SD3Transformer2DModel",
)
_CALL_BY_CALL = (
    "ChromaTransformer2DModel",
    "CogView4Transformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "Lumina2Transformer2DModel",
    "QwenImageTransformer2DModel",
)
BRANCHES = {name: DenoiserTraits() for name in _IN_ONE_BATCH} | {
    name: DenoiserTraits(branch_a_call=True) for name in _CALL_BY_CALL
}
DISTILLED = GatePlan(1)  # the documents' plan for latent consistency models of a few steps


def find_denoiser(denoiser: Any, attention: bool = True) -> DenoiserTraits | None:
    """Returns the entry of a denoiser's class (also of a subclass or a compiled one), or None.

    ``attention``: only denoisers whose cross-attention can be gated.
    """
    plain = getattr(denoiser, "_orig_mod", denoiser)  # as it was before `torch.compile`
    known = DENOISERS if attention else DENOISERS | BRANCHES
    names = (kind.__name__ for kind in type(plain).__mro__)
    return next((known[name] for name in names if name in known), None)


def denoiser_traits(denoiser: Any, attention: bool = True) -> DenoiserTraits:
    """Returns the entry of a denoiser's class; raises ValueError if it is not supported."""
    traits = find_denoiser(denoiser, attention)
    if traits is not None:
        return traits
    name = type(getattr(denoiser, "_orig_mod", denoiser)).__name__
    if attention:
        raise ValueError(
            f"{name} is not supported: its cross-attention keys may change between steps. Fix: use "
            "a pipeline of Stable Diffusion 1.5, 2.1 or XL, PixArt, Sana, Wan 2.1, AnimateDiff or "
            "Stable Video Diffusion"
        )
    raise ValueError(
        f"{name} is not supported: the order of its guidance branches is unknown. Fix: use a plan "
        f"without guidance (Forecast), or one of {', '.join(sorted(DENOISERS | BRANCHES))}"
    )


def documented_plan(pipe: Any, denoiser: Any) -> GatePlan:
    """Returns the plan in T-GATE's documentation for a pipeline; raises ValueError if none."""
    plan = denoiser_traits(denoiser).plan
    if plan is None:
        raise ValueError(
            f"T-GATE's documentation has no plan for {type(denoiser).__name__}. Fix: give one, for "
            "example gated(pipe, GatePlan(gate_step=0.4))"
        )
    conditioned = getattr(denoiser.config, "time_cond_proj_dim", None) is not None
    is_distilled = conditioned or type(pipe.scheduler).__name__ == "LCMScheduler"
    return DISTILLED if is_distilled else plan
