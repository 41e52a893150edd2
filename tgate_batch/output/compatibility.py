"""Checks, before anything is loaded, that models, arms and the rows' settings fit together."""

from collections.abc import Mapping

from tgate_batch.config import Arm, Config, Model, ResolvedSampling, effective_sampling
from tgate_batch.errors import UserError
from tgate_batch.gate.plan import GuidanceInterval
from tgate_batch.models.description import ModelDescription
from tgate_batch.models.family import Family
from tgate_batch.models.generic.classes import interval_refusal
from tgate_batch.models.resolve import resolve_model
from tgate_batch.models.schedulers import supports_image_to_image
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.records import AS_OTHERS, BatchKey


def check_arm(model: str, name: str, arm: Arm, sampling: ResolvedSampling) -> None:
    """Raises UserError if an arm's plan or guidance interval does not fit the steps."""
    schedule = arm.combined_plan
    if schedule is None:
        return
    try:
        schedule.check(effective_sampling(sampling, arm).steps_run)
    except ValueError as error:
        raise UserError(f"arms.{name} with {model}: {error}") from None


def check_generic_arm(model: Model, name: str, arm: Arm) -> None:
    """Raises UserError for an arm that a pipeline without a family file cannot follow."""
    resolved = resolve_model(model)
    if not resolved.family.is_generic or arm.combined_plan is arm.cache is None:
        return
    what, kind = f"arms.{name} with {model.name}", resolved.row.pipeline
    if arm.cache is not None or not _only_ends_guidance(arm):
        raise UserError(
            f"{what}: of all plans, a {kind} can only follow an interval of guidance. Fix: give "
            "guidance_from, guidance_until or steps, and no other key"
        )
    reason = interval_refusal(kind)
    if reason is not None:
        raise UserError(
            f"{what}: guidance of a {kind} cannot be dropped: {reason}. Fix: remove guidance_from "
            "and guidance_until"
        )


def _only_ends_guidance(arm: Arm) -> bool:
    interval = arm.interval
    plain = interval is None or interval == GuidanceInterval(interval.first, interval.end)
    return plain and arm.combined_plan == interval


def check_rows(
    config: Config, models: Mapping[str, ModelDescription], shards: list[ShardPlan]
) -> None:
    """Raises UserError, naming the first such row, for settings that a model or arm refuses."""
    first: dict[BatchKey, int] = {}
    for shard in shards:
        first.setdefault(shard.batch_key, shard.first)
    families = {model.name: resolve_model(model).family for model in config.models}
    for key, row in first.items():
        try:
            for name, family in families.items():
                sampling = effective_sampling(models[name].sampling, row=key)
                _check_size(name, sampling, family.multiple, key)
                for arm_name, arm in config.arms.items():
                    chosen = effective_sampling(sampling, arm)
                    _check_strength(f"arms.{arm_name} with {name}", family, chosen)
                    check_arm(name, arm_name, arm, sampling)
        except UserError as error:
            if key == AS_OTHERS:
                raise
            raise UserError(f"prompts, row {row + 1} of the set ({key}): {error}") from None


def _check_size(model: str, sampling: ResolvedSampling, multiple: int, key: BatchKey) -> None:
    if sampling.height % multiple or sampling.width % multiple:
        message = (
            f"{model} cannot render {sampling.width} x {sampling.height} pixels: width and height "
            f"must be multiples of {multiple}"
        )
        if key.height is not None or key.width is not None:
            message += (
                ". Fix: write prompts.columns: {height: null, width: null} if the rows' sizes are "
                "those of other images"
            )
        raise UserError(message)


def _check_strength(what: str, family: Family, sampling: ResolvedSampling) -> None:
    if sampling.strength is None:
        return
    if not family.from_pictures:
        raise UserError(
            f"{what}: diffusers has no image-to-image pipeline of this family that takes encoded "
            "prompts. Fix: set prompts.columns: {strength: null}, and remove prompts.strength"
        )
    if not supports_image_to_image(sampling.scheduler):
        raise UserError(
            f"{what}: {sampling.scheduler} cannot add noise to an image, so it cannot render "
            "image-to-image rows. Fix: give another scheduler"
        )
    if sampling.steps_run == 0:
        raise UserError(
            f"{what}: strength {sampling.strength:g} of {sampling.steps} steps is less than one "
            "step. Fix: give a larger strength or more steps"
        )
