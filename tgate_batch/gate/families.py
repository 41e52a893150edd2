"""What the gate must know of a denoiser's class, because no call of it shows it."""

import torch
from diffusers import UNetSpatioTemporalConditionModel

# SVD's denoiser sees the picture in its input too, not only through attention. Its negative branch
# has no picture at all, so the positive one goes on (HaozheLiu-ST/T-GATE, tgate/SVD.py).
_KEEP_POSITIVE = (UNetSpatioTemporalConditionModel,)


def kept_branch(denoiser: torch.nn.Module) -> int:
    """The half of a guided batch that runs on from the gate step: 0 the negative, 1 the positive.

    A new class of denoisers keeps the negative branch, as T-GATE does for text.
    """
    plain = getattr(denoiser, "_orig_mod", denoiser)  # as it was before `torch.compile`
    return int(isinstance(plain, _KEEP_POSITIVE))
