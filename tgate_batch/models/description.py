"""The description of each model of a run, for ``run.json`` and the report."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tgate_batch.config import Model, ResolvedSampling, Sampling, scheduler_of
from tgate_batch.models.loras import fits
from tgate_batch.models.resolve import resolve_model
from tgate_batch.models.schedulers import describe_scheduler


@dataclass(frozen=True)
class ModelDescription:
    """One model of a run: its kind, and how it samples."""

    pipeline: str  # a class of diffusers
    like: str  # the catalogue's row whose documented settings hold
    scheduler: str  # the class that draws, as a person reads it
    sampling: ResolvedSampling
    from_file: Mapping[str, Any] = field(default_factory=dict)  # scheduler arguments that it names
    loras: tuple[str, ...] = ()  # how many layers of each fit, a line each

    def summary_line(self) -> str:
        """Returns one line for the start of a run."""
        how = self.sampling
        settings = ", ".join(f"{key} {value}" for key, value in self.from_file.items())
        file = f"; the file itself says {settings}" if settings else ""
        loras = "".join(f"; {line}" for line in self.loras)
        return (
            f"a {self.pipeline}, settings like {self.like}; {how.steps} steps of {self.scheduler}, "
            f"guidance {how.guidance_scale:g}, {how.width} x {how.height} pixels{file}{loras}"
        )

    @property
    def partial_loras(self) -> list[str]:
        """The lines of LoRAs of which some layers do not fit."""
        counts = [re.search(r": (\d+) of (\d+) layers fit", line) for line in self.loras]
        return [each.string for each in counts if each is not None and each[1] != each[2]]

    def under(self, model: Model, sampling: Sampling) -> ResolvedSampling:
        """How the model samples by its config; what that leaves open is as it was found."""
        given = sampling.model_dump(exclude_none=True, exclude={"scheduler"})
        scheduler = sampling.scheduler if model.scheduler is None else model.scheduler
        if scheduler is not None:
            chosen = scheduler_of(scheduler)
            given |= chosen
            given["scheduler_arguments"] = {**self.from_file, **chosen["scheduler_arguments"]}
        return self.sampling.model_copy(update=given)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "pipeline": self.pipeline,
            "like": self.like,
            "scheduler": self.scheduler,
            "sampling": self.sampling.model_dump(mode="json"),
            "from_file": dict(self.from_file),
            "loras": list(self.loras),
        }


def describe_model(model: Model, sampling: ResolvedSampling) -> ModelDescription:
    """What a run uses of a model; raises UserError as ``resolve_model`` does."""
    resolved = resolve_model(model)
    pipeline = resolved.row.pipeline.rpartition(".")[2]
    return ModelDescription(
        pipeline,
        resolved.like,
        describe_scheduler(resolved, sampling),
        sampling,
        resolved.says,
        fits(model, resolved),
    )


def read_descriptions(content: Any) -> dict[str, ModelDescription]:
    """What ``described`` wrote, by model; without those that cannot be read."""
    descriptions = {}
    for name, one in content.items() if isinstance(content, Mapping) else ():
        try:
            sampling = ResolvedSampling.model_validate(one["sampling"])
            of_file = dict(one.get("from_file") or {})
            descriptions[name] = ModelDescription(
                one["pipeline"],
                one["like"],
                one["scheduler"],
                sampling,
                of_file,
                tuple(map(str, one.get("loras") or ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ValidationError):
            continue
    return descriptions
