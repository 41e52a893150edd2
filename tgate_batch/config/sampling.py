"""How an image is sampled: the settings of the model, the arm and the row, resolved into one."""

from typing import Any

from pydantic import Field

from tgate_batch.config.sections import Arm, Section
from tgate_batch.records import AS_THE_RUN, BatchKey, RowSettings

_GUIDED = 2.0  # a scale at which guidance is on


class ResolvedSampling(Section):
    """The sampling settings of one model, with every default resolved."""

    steps: int
    guidance_scale: float
    height: int  # pixels
    width: int  # pixels
    scheduler: str  # a diffusers scheduler class, or OWN_SCHEDULER
    scheduler_arguments: dict[str, Any] = Field(default_factory=dict)  # override the checkpoint's
    negative_prompt: str
    batch_size: int  # images in a batch
    seed: int
    images_per_prompt: int
    padding: bool
    strength: float | None = None  # of image-to-image rows

    @property
    def steps_run(self) -> int:
        """The denoising steps that are run; for image-to-image, only the last of ``steps``."""
        return self.steps if self.strength is None else int(self.steps * self.strength)


def effective_sampling(
    model: ResolvedSampling, arm: Arm | None = None, row: RowSettings | BatchKey = AS_THE_RUN
) -> ResolvedSampling:
    """Returns how an image is sampled: the arm's settings first, then the row's, then the model's.

    ``model`` holds what the config sets, else what the checkpoint's files or the catalogue say.
    ``row`` may be the key of a batch; one scale then represents the differing scales of its rows. A
    row's seed is not part of the result, because each of its images has another
    (:func:`tgate_batch.records.image_seed`).

    >>> from tgate_batch.config import Sampling
    >>> from tgate_batch.models import catalogue
    >>> sd15 = catalogue.resolve("sd15", Sampling())
    >>> chosen = effective_sampling(sd15, Arm(steps=8), RowSettings(steps=12, height=768))
    >>> chosen.steps, chosen.height, chosen.width
    (8, 768, 512)
    """
    settings = _of_row(model, row)
    if arm is not None:
        of_arm = {key: getattr(arm, key, None) for key in ResolvedSampling.model_fields}
        if of_arm["guidance_scale"] is None:
            of_arm["guidance_scale"] = arm.largest_weight
        settings |= {key: value for key, value in of_arm.items() if value is not None}
        if arm.scheduler is not None:
            settings["scheduler_arguments"] = {}
    return model.model_copy(update=settings) if settings else model


def _of_row(model: ResolvedSampling, row: RowSettings | BatchKey) -> dict[str, Any]:
    settings = {key: value for key, value in row._asdict().items() if value is not None}
    settings.pop("seed", None)
    guided = settings.pop("guided", None)
    if guided is not None and "guidance_scale" not in settings:
        scale = model.guidance_scale
        settings["guidance_scale"] = max(scale, _GUIDED) if guided else min(scale, 1.0)
    return settings
