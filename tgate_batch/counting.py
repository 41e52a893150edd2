"""The MACs of one image of a run's arm, as its files carry them."""

from tgate_batch.config import Arm, Model
from tgate_batch.metrics.macs import macs_of
from tgate_batch.run import Run


def arm_macs(run: Run, model: Model, arm: Arm) -> dict[str, float | None]:
    """``macs_per_image`` (the published convention) and ``macs_per_image_with_attention``.

    None where the architecture is not known without weights.
    """
    sampling = run.sampling(model.name)
    macs = macs_of(
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
    return {
        "macs_per_image": macs.per_image,
        "macs_per_image_with_attention": macs.per_image_with_attention,
    }
