"""Which denoising step a call of the denoiser belongs to, by scheduler."""

from typing import Any


def steps_of_calls(scheduler: Any) -> list[int]:
    """The step of every denoiser call of one pipeline call, in order, after ``set_timesteps``.

    A second-order scheduler (Heun, KDPM2) calls the denoiser twice a step; both calls act alike.
    PNDM's first step is a trial and its correction, so its first two calls are step 0. Where a
    pipeline makes fewer calls (image-to-image, ``denoising_end``) the tail is not used.

    Raises ValueError for a scheduler whose calls do not map to steps.
    """
    calls = len(scheduler.timesteps)
    if any(kind.__name__ == "PNDMScheduler" for kind in type(scheduler).__mro__):
        if not scheduler.config.skip_prk_steps:
            raise ValueError(
                "PNDMScheduler with Runge-Kutta steps calls the denoiser four times in some steps "
                "and once in others, and T-GATE counts steps by calls; set skip_prk_steps=True or "
                "use DDIM, Euler or DPM++ multistep"
            )
        return [max(call - 1, 0) for call in range(calls)]
    order = getattr(scheduler, "order", 1)
    return [call // order for call in range(calls)]
