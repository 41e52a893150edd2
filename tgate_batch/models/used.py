"""What a run uses of each model, as ``run.json`` and the report keep it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tgate_batch.config import Model, ResolvedSampling, Sampling, scheduler_of
from tgate_batch.models.opened import opened
from tgate_batch.models.scheduling import told


@dataclass(frozen=True)
class Used:
    """One model of a run: its kind, and how it samples."""

    pipeline: str  # a class of diffusers
    like: str  # the catalogue's row whose documented settings hold
    scheduler: str  # the class that draws, as a person reads it
    sampling: ResolvedSampling
    from_file: Mapping[str, Any] = field(default_factory=dict)  # scheduler arguments that it names

    def told(self) -> str:
        """In a line, as it is said at the start."""
        how = self.sampling
        said = ", ".join(f"{key} {value}" for key, value in self.from_file.items())
        file = f"; the file itself says {said}" if said else ""
        return (
            f"a {self.pipeline}, settings like {self.like}; {how.steps} steps of {self.scheduler}, "
            f"guidance {how.guidance_scale:g}, {how.width} x {how.height} pixels{file}"
        )

    def under(self, model: Model, sampling: Sampling) -> ResolvedSampling:
        """How the model samples by its config; what that leaves open is as it was found."""
        given = sampling.model_dump(exclude_none=True, exclude={"scheduler"})
        scheduler = sampling.scheduler if model.scheduler is None else model.scheduler
        if scheduler is not None:
            chosen = scheduler_of(scheduler)
            given |= chosen
            given["scheduler_arguments"] = {**self.from_file, **chosen["scheduler_arguments"]}
        return self.sampling.model_copy(update=given)

    def described(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "pipeline": self.pipeline,
            "like": self.like,
            "scheduler": self.scheduler,
            "sampling": self.sampling.model_dump(mode="json"),
            "from_file": dict(self.from_file),
        }


def used(model: Model, sampling: ResolvedSampling) -> Used:
    """What a run uses of a model; raises UserError as ``opened`` does."""
    found = opened(model)
    pipeline = found.row.pipeline.rpartition(".")[2]
    return Used(pipeline, found.like, told(found, sampling), sampling, found.says)


def read_used(said: Any) -> dict[str, Used]:
    """What ``described`` wrote, by model; without those that cannot be read."""
    found = {}
    for name, one in said.items() if isinstance(said, Mapping) else ():
        try:
            sampling = ResolvedSampling.model_validate(one["sampling"])
            of_file = dict(one.get("from_file") or {})
            found[name] = Used(one["pipeline"], one["like"], one["scheduler"], sampling, of_file)
        except (AttributeError, KeyError, TypeError, ValueError, ValidationError):
            continue
    return found
