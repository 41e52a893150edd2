"""The generic family: catalogue rows of pipelines without a family file, and rows of any class."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.models.architecture import ComponentSpec
from tgate_batch.models.family import Entry, Family
from tgate_batch.models.generic import classes
from tgate_batch.models.generic.rows import ENTRIES

_STEPS, _SIDE = 28, 1024  # where neither the catalogue nor the class's call has a default
_SCALES = ("true_cfg_scale", "guidance_scale", "prior_guidance_scale")


def _uncounted(*_: Any) -> dict[str, Any]:
    raise UserError("the inputs of this denoiser are read from its pipeline alone")


def _no_tokens(row: Entry, encoders: Mapping[str, ComponentSpec]) -> int:
    return 0


FAMILY = Family(
    entries=ENTRIES,
    denoiser="transformer",
    inputs=_uncounted,
    tokens=_no_tokens,
    loras=False,
    runner="tgate_batch.models.generic.runner:GenericRunner",
)
_VIDEOS = replace(FAMILY, draws="video")


def row_of(class_name: str | None, name: str, path: str) -> tuple[Entry, Family]:
    """The settings of a checkpoint of this class: the defaults of the class's own call.

    Raises UserError, with the reason in one line, if the class is not rendered.
    """
    reason = classes.refusal(class_name)
    if reason is not None:
        raise UserError(
            f"models: {name}: {path} is a {class_name or 'pipeline without a class'}, which is not "
            f"supported: {reason}. Fix: give a checkpoint of a text-to-image pipeline "
            "(docs/models.md)"
        )
    assert class_name is not None
    takes = classes.call_parameters(class_name)
    default = {key: taken.default for key, taken in takes.items()}
    scale = next((key for key in _SCALES if isinstance(default.get(key), int | float)), None)
    steps = default.get("num_inference_steps")
    sizes = [default.get(side) for side in ("height", "width")]
    height, width = (side if isinstance(side, int) and side > 0 else _SIDE for side in sizes)
    row = Entry(
        name,
        class_name,
        path,
        steps=steps if isinstance(steps, int) else _STEPS,
        guidance_scale=float(default[scale]) if scale is not None else 1.0,
        height=height,
        width=width,
        half="bfloat16",
    )
    is_video = "num_frames" in takes or "video_length" in takes
    return row, _VIDEOS if is_video else FAMILY
