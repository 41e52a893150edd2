"""The MACs of one image of an arm; as a run's files carry them."""

from tgate_batch.config import Arm, Model, Sampling
from tgate_batch.models.macs import Macs, macs_of
from tgate_batch.output.run import Run


def arm_macs(run: Run, model: Model, arm: Arm) -> dict[str, float | None]:
    """``macs_per_image`` (the published convention) and ``macs_per_image_with_attention``.

    None where the architecture is not known without weights.
    """
    macs = macs_of_arm(model, arm, run.sampling(model.name))
    return {
        "macs_per_image": macs.per_image,
        "macs_per_image_with_attention": macs.per_image_with_attention,
    }


def macs_of_arm(model: Model, arm: Arm, sampling: Sampling) -> Macs:
    """``sampling`` is the model's own, nothing left open; raises UserError as ``macs_of`` does."""
    return macs_of(
        model.name,
        model.path,
        plan=arm.plan,
        deepcache=arm.cache,
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        height=sampling.height,
        width=sampling.width,
        scheduler=sampling.scheduler,
    )
