"""What a pipeline class does not show: facts of single classes, and the classes that are refused.

Each line has its reason. The signature of a class's call shows everything else (``calls.py``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any

from tgate_batch.models.architecture import class_names


@dataclass(frozen=True)
class ClassFacts:
    """What is known of one class.

    ``neutral_scale``: the guidance scale at and below which the class runs one branch; None if no
    scale ends guidance. ``alone``: why rows are rendered one a call; None if they share batches.
    ``frames_per_second``: of a video that is shown. ``always_guided``: why guidance cannot be
    dropped at single steps; None if reading the branches decides. ``call``: further arguments of
    every call. ``other_steps``: further arguments if the steps are another number than this one.
    """

    neutral_scale: float | None = 1.0
    alone: str | None = None
    frames_per_second: int = 16
    always_guided: str | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    other_steps: tuple[int, Mapping[str, Any]] | None = None


# Classes that are rendered as any other, but that no tiny pipeline was built for: they may fail.
NOT_TRIED = (
    *("AllegroPipeline", "AltDiffusionPipeline", "AnyFlowFARPipeline", "BriaFibo2Pipeline"),
    *("BriaFiboPipeline", "DreamLiteMobilePipeline", "DreamLitePipeline", "EasyAnimatePipeline"),
    *("ErnieImagePipeline", "Flux2Pipeline", "GlmImagePipeline", "HeliosPipeline"),
    *("HeliosPyramidPipeline", "HunyuanVideo15Pipeline", "Ideogram4Pipeline"),
    *("KandinskyCombinedPipeline", "KandinskyV22CombinedPipeline", "KolorsPAGPipeline"),
    *("LTX2ConditionPipeline", "LTX2DFRPipeline", "LTX2HDRPipeline", "LTX2InContextPipeline"),
    *("LTX2Pipeline", "LongCatImagePipeline", "MotifVideoPipeline", "NucleusMoEImagePipeline"),
    *("QwenImage21Pipeline", "StableCascadeCombinedPipeline", "TextToVideoSDPipeline"),
    *("UnCLIPPipeline", "VQDiffusionPipeline", "VersatileDiffusionTextToImagePipeline"),
    *("WuerstchenCombinedPipeline", "SanaSprintPipeline"),
)

_TWO_LOOPS = "its two models have a loop each, and the steps of an arm are those of one loop"
_THREE_BRANCHES = "perturbed-attention guidance runs a third branch, which follows the caption too"

_FRAMES = "the rows of its calls are frames, not branches"

FACTS: Mapping[str, ClassFacts] = {
    # Their formula is p + s * (p - n): scale 1 still runs both branches, 0 ends guidance.
    "ZImagePipeline": ClassFacts(neutral_scale=0.0),
    "Krea2Pipeline": ClassFacts(neutral_scale=0.0),
    # No scale ends guidance: the second branch runs at every one.
    "StableCascadeCombinedPipeline": ClassFacts(neutral_scale=None, always_guided=_TWO_LOOPS),
    "StableUnCLIPPipeline": ClassFacts(neutral_scale=None, always_guided=_TWO_LOOPS),
    "UnCLIPPipeline": ClassFacts(neutral_scale=None, always_guided=_TWO_LOOPS),
    "WuerstchenCombinedPipeline": ClassFacts(neutral_scale=None, always_guided=_TWO_LOOPS),
    "KandinskyCombinedPipeline": ClassFacts(neutral_scale=None, always_guided=_TWO_LOOPS),
    # Its guidance is an object of its checkpoint, and no argument of the call.
    "HunyuanImagePipeline": ClassFacts(neutral_scale=None),
    "HunyuanVideo15Pipeline": ClassFacts(neutral_scale=None, frames_per_second=24),
    "MotifVideoPipeline": ClassFacts(neutral_scale=None, frames_per_second=24),
    # One call takes one prompt.
    "DreamLitePipeline": ClassFacts(alone="a call takes one prompt"),
    "DreamLiteMobilePipeline": ClassFacts(alone="a call takes one prompt"),
    "WanVACEPipeline": ClassFacts(alone="a call takes one prompt"),
    # It pads captions to the longest of the batch and attends to the padding.
    "OmniGenPipeline": ClassFacts(
        neutral_scale=None, alone="an image depends on the captions beside it"
    ),
    # The transformer splits a guided batch wrongly for more than one image.
    "PRXPipeline": ClassFacts(alone="a guided batch of several images fails in diffusers"),
    # Its first model samples for the whole batch from the first generator's seed.
    "GlmImagePipeline": ClassFacts(alone="one seed decides a whole batch"),
    # It reads the rows of its call one by one from the first generator.
    "KandinskyV22CombinedPipeline": ClassFacts(
        neutral_scale=None,
        alone="a list of generators is not taken",
        always_guided=_TWO_LOOPS,
    ),
    # Frames a second, as each model's documents show its videos.
    "AllegroPipeline": ClassFacts(frames_per_second=15),
    # They repeat a caption for each frame, so the rows of a call do not divide into branches.
    "AnimateDiffPipeline": ClassFacts(frames_per_second=8, always_guided=_FRAMES),
    "AnimateDiffSDXLPipeline": ClassFacts(frames_per_second=8, always_guided=_FRAMES),
    # Rows are the second dimension of its captions.
    "HiDreamImagePipeline": ClassFacts(always_guided="its captions have their rows elsewhere"),
    # A second pass attends to what the first one saw.
    "StableDiffusionSAGPipeline": ClassFacts(always_guided="it runs a further pass each step"),
    # The whole batch is one canvas of overlapping windows.
    "StableDiffusionPanoramaPipeline": ClassFacts(
        alone="an image depends on the images beside it",
        always_guided="it runs a pass for each window of the image",
    ),
    # Several steps are one batch.
    "StableDiffusionParadigmsPipeline": ClassFacts(
        alone="an image depends on the images beside it",
        always_guided="it runs several steps at once",
    ),
    # It returns -1..1 for tensors.
    "IFPipeline": ClassFacts(call={"output_type": "np"}),
    # Its default intermediate time is for two steps.
    "SanaSprintPipeline": ClassFacts(other_steps=(2, {"intermediate_timesteps": None})),
    "CogVideoXPipeline": ClassFacts(frames_per_second=8),
    # It cuts captions to the longest of the batch.
    "HunyuanVideoPipeline": ClassFacts(
        frames_per_second=15, alone="an image depends on the captions beside it"
    ),
    "Kandinsky5T2VPipeline": ClassFacts(frames_per_second=24),
    "LTXPipeline": ClassFacts(frames_per_second=24),
    "LattePipeline": ClassFacts(frames_per_second=8),
    "MochiPipeline": ClassFacts(frames_per_second=30),
    "SkyReelsV2Pipeline": ClassFacts(frames_per_second=24),
}

# Parts of a class's name, in this order, and what such a class needs beyond a caption.
_NEEDS = (
    (r"ControlNet|Control(?=Pipeline|Inpaint|Img2Img)|Adapter|GLIGEN", "it needs a control image"),
    (r"Inpaint|Fill", "it needs an image and a mask"),
    (
        r"Img2Img|ImageToVideo|Image2Video|I2V|I2I|TI2VA|InstructPix2Pix|Variation|PIA",
        "it needs an image",
    ),
    (
        r"ImageToImage|Edit|Kontext|Redux|Refiner|Depth2Img|DiffEdit|Omni(?=Pipeline)|Layered|Cycle",
        "it needs an image",
    ),
    (r"Upscale|SuperResolution|Upsample|SR(?=Pipeline)|Refine", "it needs an image to enlarge"),
    (r"VideoToVideo|VideoToWorld|WanAnimate|Lucy", "it needs a video"),
    (r"Audio|Music|AceStep", "it makes sound"),
    (r"ShapE|RFD4", "it makes shapes"),
    (r"LLaDA|DiffusionGemma|UniDiffuser", "it makes text"),
    (r"Modular", "it is built of blocks, and its call has no fixed arguments"),
    (r"Onnx|Flax", "it runs outside of torch"),
    (r"(?<!Combined)DecoderPipeline|PriorPipeline|PriorEmb2Emb", "it is one of two stages"),
)

REFUSED: Mapping[str, str] = {
    "AmusedPipeline": "it samples tokens from one generator for a whole batch",
    "CosmosTextToWorldPipeline": "it needs the cosmos_guardrail package and its models",
    "Cosmos2TextToImagePipeline": "it needs the cosmos_guardrail package and its models",
    "Cosmos2_5_PredictBasePipeline": "it needs the cosmos_guardrail package and its models",
    "Cosmos3OmniPipeline": "it needs the cosmos_guardrail package and its models",
    "StableDiffusionAttendAndExcitePipeline": "it needs the positions of words",
    "StableDiffusionLDM3DPipeline": "its images have a depth map in further channels",
    "TextToVideoZeroPipeline": "its call names fixed steps of 50, so steps cannot be chosen",
    "TextToVideoZeroSDXLPipeline": "its call names fixed steps of 50, so steps cannot be chosen",
    "StableDiffusionPix2PixZeroPipeline": "it needs the embeddings of two concepts",
    "VersatileDiffusionDualGuidedPipeline": "it needs an image",
}


# Packages that a class's file calls without asking whether they are there.
_PACKAGES = dict.fromkeys(
    (
        *("PRXPipeline", "PRXPixelPipeline", "SkyReelsV2Pipeline", "WanVACEPipeline"),
        "SkyReelsV2DiffusionForcingPipeline",
    ),
    "ftfy",
)


def facts_of(class_name: str) -> ClassFacts:
    """Returns what is known of a class; the defaults hold for a class that is not listed."""
    return FACTS.get(class_name, ClassFacts())


def interval_refusal(class_name: str) -> str | None:
    """Returns why guidance cannot be dropped at single steps; None if it may be."""
    if "PAG" in class_name:
        return _THREE_BRANCHES
    return facts_of(class_name).always_guided


def refusal(class_name: str | None) -> str | None:
    """Returns why a pipeline class is not rendered; None if it is."""
    if class_name is None:
        return "it names no class"
    if class_name in REFUSED:
        return REFUSED[class_name]
    package = _PACKAGES.get(class_name)
    if package is not None and find_spec(package) is None:
        return f"it needs the {package} package, which is not installed here"
    for pattern, reason in _NEEDS:
        if re.search(pattern, class_name):
            return reason
    if class_name not in class_names("pipelines"):
        return "diffusers has no such pipeline"
    try:
        takes = call_parameters(class_name)
    except (ImportError, RuntimeError, AttributeError) as error:
        return f"it cannot be imported here ({' '.join(str(error).split())[:80]})"
    if "prompt" not in takes:
        return "it takes no prompt"
    needed = [name for name, taken in takes.items() if _is_needed(taken) and name != "prompt"]
    if needed:
        return f"it needs {' and '.join(needed)}"
    if "generator" not in takes:
        return "it takes no generator, so a seed cannot decide its images"
    return None


def call_parameters(class_name: str) -> Mapping[str, Parameter]:
    """Returns the parameters of a pipeline class's call, without ``self``."""
    import diffusers

    kind: Any = getattr(diffusers, class_name)
    takes = dict(signature(kind.__call__).parameters)
    takes.pop("self", None)
    return takes


def _is_needed(parameter: Parameter) -> bool:
    catches_all = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return parameter.default is Parameter.empty and not catches_all
