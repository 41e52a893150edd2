"""The arguments of a pipeline's call, read from its signature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, signature
from typing import Any

from tgate_batch.config import ResolvedSampling
from tgate_batch.models.generic.classes import ClassFacts, facts_of

TRUE_SCALE, SCALE = "true_cfg_scale", "guidance_scale"
_SCALES = (SCALE, "prior_guidance_scale", "distilled_guidance_scale")
# Switched off: a language model that rewrites the prompt from the process's random numbers, sizes
# other than the config's, and cleaning that needs further packages.
_OFF = (
    *("enable_prompt_rewrite", "use_pe", "prompt_upsampling"),
    *("use_resolution_binning", "clean_caption"),
)
# Parts of a pipeline that are taken out: they change or hide images.
_TAKEN_OUT = ("safety_checker", "watermarker", "image_noising_scheduler_watermark")


@dataclass(frozen=True)
class CallReader:
    """How one pipeline class is called.

    ``embeds_scale``: its denoiser takes the guidance scale as an input, so one branch runs.
    """

    class_name: str
    takes: Mapping[str, Parameter]
    embeds_scale: bool = False
    facts: ClassFacts = field(default_factory=ClassFacts)

    @classmethod
    def of(cls, pipeline: Any) -> "CallReader":
        """Reads a loaded pipeline."""
        kind = type(pipeline)
        takes = dict(signature(kind.__call__).parameters)
        configs = [getattr(part, "config", None) for part in pipeline.components.values()]
        embeds = any(getattr(config, "guidance_embeds", False) for config in configs)
        return cls(kind.__name__, takes, embeds, facts_of(kind.__name__))

    @cached_property
    def scale(self) -> str | None:
        """The argument that the config's guidance scale is given as; None if there is none.

        Where a class has two, ``guidance_scale`` is an input of a distilled denoiser, and
        ``true_cfg_scale`` runs a second branch.
        """
        if TRUE_SCALE in self.takes and not self.embeds_scale:
            return TRUE_SCALE
        return next((name for name in _SCALES if name in self.takes), None)

    @property
    def is_video(self) -> bool:
        """True if a call makes videos."""
        return "num_frames" in self.takes or "video_length" in self.takes

    def is_guided(self, sampling: ResolvedSampling) -> bool:
        """True if the scale asks for a second branch."""
        neutral = self.facts.neutral_scale
        if neutral is None:
            return True
        if self.scale is None or (self.embeds_scale and TRUE_SCALE in self.takes):
            return False
        return sampling.guidance_scale > neutral

    def default(self, name: str) -> Any:
        """The call's own default of an argument; None if it has none."""
        taken = self.takes.get(name)
        return None if taken is None or taken.default is Parameter.empty else taken.default

    def arguments(
        self, captions: Sequence[str], negatives: Sequence[str], sampling: ResolvedSampling
    ) -> dict[str, Any]:
        """The arguments of a call, without generators.

        An empty negative prompt is the pipeline's own default, but where guidance needs one.
        """
        one = self.facts.alone is not None
        given: dict[str, Any] = {
            "prompt": captions[0] if one else list(captions),
            "height": sampling.height,
            "width": sampling.width,
            "num_inference_steps": sampling.steps,
            "output_type": "pt",
            "return_dict": False,
            **dict.fromkeys(_OFF, False),
            **self.facts.call,
        }
        if self.facts.other_steps is not None and sampling.steps != self.facts.other_steps[0]:
            given |= self.facts.other_steps[1]
        if self.scale is not None:
            given[self.scale] = sampling.guidance_scale
        guided = self.is_guided(sampling)
        if guided and (any(negatives) or self.scale == TRUE_SCALE):
            given["negative_prompt"] = negatives[0] if one else list(negatives)
        return {name: value for name, value in given.items() if name in self.takes}


def prepare(pipeline: Any) -> None:
    """Takes out of a pipeline what changes or hides its images, and its progress bar."""
    for name in _TAKEN_OUT:
        if getattr(pipeline, name, None) is not None:
            pipeline.register_modules(**{name: None})
    pipeline.set_progress_bar_config(disable=True)
