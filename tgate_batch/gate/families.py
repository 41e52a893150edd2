"""The denoisers that the gate serves, by class: what no call of them shows.

A call shows which of a block's layers is cross-attention, not whether its keys are the caption's
alone and the same at every step (they are not in PRX, Stable Cascade or LTX-2). So a class is
listed once that is known, and the gate refuses every other one.
"""

from dataclasses import dataclass
from typing import Any

from tgate_batch.gate.plan import GatePlan


@dataclass(frozen=True)
class Denoiser:
    """One class of denoisers.

    ``kept``: the half of a guided batch that runs on from the gate, 0 the negative branch, as
    T-GATE has it for text, 1 the positive one. ``plan``: the one that T-GATE's documents give, None
    where they know nothing of the class. ``branch_a_call``: its pipelines call it once for each
    branch, and not once for both.
    """

    kept: int = 0
    plan: GatePlan | None = None
    branch_a_call: bool = False


# Plans: HaozheLiu-ST/T-GATE, README.md, and main.py for video.
DENOISERS = {
    "UNet2DConditionModel": Denoiser(plan=GatePlan(10, sp_interval=5, warm_up=2)),
    "PixArtTransformer2DModel": Denoiser(plan=GatePlan(15, sp_interval=3, warm_up=2)),
    # It sees the picture in its input too, not only through attention, and its negative branch has
    # no picture at all, so the positive one goes on (HaozheLiu-ST/T-GATE, tgate/SVD.py).
    "UNetSpatioTemporalConditionModel": Denoiser(kept=1, plan=GatePlan(10)),
    "UNetMotionModel": Denoiser(),
    "SanaTransformer2DModel": Denoiser(),
    "WanTransformer3DModel": Denoiser(branch_a_call=True),
    # They run beside a UNet2DConditionModel, on its rows.
    "ControlNetModel": Denoiser(),
    "ControlNetUnionModel": Denoiser(),
}
DISTILLED = GatePlan(1)  # the documents' plan for latent consistency models of a few steps


def known(denoiser: Any) -> Denoiser | None:
    """What is known of a denoiser's class, a subclass or a compiled one included."""
    plain = getattr(denoiser, "_orig_mod", denoiser)  # as it was before `torch.compile`
    names = (kind.__name__ for kind in type(plain).__mro__)
    return next((DENOISERS[name] for name in names if name in DENOISERS), None)


def denoiser_class(denoiser: Any) -> Denoiser:
    """The same; raises ValueError for a class that is not listed."""
    kind = known(denoiser)
    if kind is not None:
        return kind
    plain = getattr(denoiser, "_orig_mod", denoiser)
    raise ValueError(
        f"{type(plain).__name__} is not a denoiser whose cross-attention is known to stand still "
        "while its caption does, so nothing can be gated; use a pipeline of Stable Diffusion 1.5, "
        "2.1 or XL and their kin, PixArt, Sana, Wan 2.1, AnimateDiff or Stable Video Diffusion"
    )


def documented_plan(pipe: Any, denoiser: Any) -> GatePlan:
    """The plan that T-GATE's documents give for a pipeline; raises ValueError if they have none."""
    plan = denoiser_class(denoiser).plan
    if plan is None:
        raise ValueError(
            f"T-GATE's documents have no plan for {type(denoiser).__name__}; give one, for example "
            "gated(pipe, GatePlan(gate_step=0.4))"
        )
    conditioned = getattr(denoiser.config, "time_cond_proj_dim", None) is not None
    is_distilled = conditioned or type(pipe.scheduler).__name__ == "LCMScheduler"
    return DISTILLED if is_distilled else plan
