"""The sections of a config, as frozen pydantic models that refuse unknown keys.

The text below a field is its description in docs/config.md, in the schema and in editors.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from tgate_batch.gate.plan import (
    DeepCache,
    Forecast,
    GatePlan,
    GuidanceInterval,
    Plan,
    SelfAttentionInterval,
    combined,
)

# A name becomes a folder (`arm=<name>`): no separators, no leading dot, no escapes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


# The dotted name of a module; a path is refused.
Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def _class_and_arguments(value: Any) -> Any:
    named = value.get("class") if isinstance(value, dict) else value
    if value is not None and not (isinstance(named, str) and named):
        raise ValueError(
            "a scheduler must be a diffusers class name, or a section with its class and "
            "arguments, e.g. {class: EulerDiscreteScheduler, timestep_spacing: trailing}"
        )
    return value


# A class name, or a section with `class` and the arguments of that class.
Scheduler = Annotated[str | dict[str, Any], BeforeValidator(_class_and_arguments)]


class Lora(Section):
    """A LoRA, fused into the model's weights when the model is loaded."""

    path: str
    """A folder, a hub id, or a .safetensors file."""
    weight_name: str | None = None
    """The file name in the folder or hub repository. Default: the only .safetensors file of the
    folder; at the hub, pytorch_lora_weights.safetensors."""
    scale: float = 1.0
    """The weight of the LoRA."""


class Model(Section):
    """A model: a catalogue name, or any name with the path of its checkpoint (docs/models.md)."""

    name: Name
    """A catalogue name (docs/models.md), or any name if `path` is given. It names the output folder
    of the model's images."""
    path: str | None = None
    """The checkpoint: a folder, a hub id, or a single .safetensors file. Its own scheduler is the
    default. Default: the catalogue's checkpoint."""
    revision: str | None = None
    """A branch, tag or commit of the hub id in `path`. Default: the main branch."""
    variant: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$")
    """Which weights of a folder or hub id to load: `fp16` means model.fp16.safetensors. A component
    without this variant uses its plain files. Default: the plain files, or the only variant."""
    config: str | None = None
    """For a single-file checkpoint: the folder or hub id of a pipeline that provides the
    configurations, tokenizers and scheduler. Default: the catalogue's checkpoint of the same
    kind."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The dtype of weights and computation. `auto`: float16 (Sana, Wan: bfloat16) on a GPU, float32
    on a CPU."""
    scheduler: Scheduler | None = None
    """Overrides `sampling.scheduler` for this model."""
    loras: tuple[Lora, ...] = ()
    """LoRAs to fuse into the weights when the model is loaded."""
    unet: str | None = None
    """A folder or hub id with a `config.json`: a U-Net that replaces the checkpoint's."""
    vae: str | None = None
    """A folder or hub id with a `config.json`: a VAE that replaces the checkpoint's."""


class Columns(Section):
    """Columns of the prompt set with settings per row; names are case-insensitive.

    An empty cell means the run's setting (`sampling`). null disables a column. A column named here
    is always a setting; a column that only shares a default name stops the run with a question if
    it may mean something else.
    """

    negative_prompt: str | None = "negative_prompt"
    """The negative prompt."""
    seed: str | None = "seed"
    """The seed of the row's first image; the seeds of further images are derived from it."""
    guidance_scale: str | None = "guidance_scale"
    """The guidance scale. Rows with different scales share batches if the model allows it."""
    height: str | None = "height"
    """Pixels, a multiple of 8."""
    width: str | None = "width"
    """Pixels, a multiple of 8."""
    steps: str | None = "steps"
    """Denoising steps; a column `num_inference_steps` is recognized too. An arm's `steps` takes
    precedence."""
    strength: str | None = "strength"
    """Image-to-image strength (above 0, at most 1), if the set also has images. An empty cell means
    `prompts.strength`."""


class Prompts(Section):
    """The prompt set, and how it is split into shards."""

    path: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """A .txt, .csv, .tsv, .jsonl, .json or .parquet file (.gz is allowed, except for Parquet): a
    path or a URI. A pattern (`part-*.csv`), a folder, or a list of these is read in order. `demo`:
    the captions of the embedded model."""
    id_column: str | None = None
    """The column of ids. Default: a column named like an id; without one, ids are derived from the
    content. Column names are case-insensitive."""
    text_column: str | None = None
    """The column of captions. Default: a column named like a caption."""
    repeated_ids: Literal["refuse", "number"] = "refuse"
    """What to do if several rows have the same id. `refuse`: stop with an error. `number`: rename
    the second to ID-2, the third to ID-3."""
    image_column: str | None = None
    """The column of input images (bytes or paths) for image-to-video and image-to-image."""
    image_roots: tuple[str, ...] = ()
    """Folders or URIs whose images rows may use, in addition to the prompt file's own folder."""
    strength: float | None = Field(None, gt=0, le=1)
    """The default image-to-image strength; only this part of `steps` is run. A row with an empty
    image cell is rendered from its caption alone. Default: only rows with a `strength` of their
    own use their image."""
    columns: Columns = Columns()
    keep: bool | tuple[str, ...] = False
    """Further columns to copy to the output, as JSON in the column `kept`; true: all unused
    columns."""
    limit: int | None = Field(None, ge=1)
    """The number of prompts to render, after `offset`. Raise it later to add prompts to the same
    output."""
    offset: int = Field(0, ge=0)
    """The number of prompts to skip at the beginning."""
    shuffle: int | None = None
    """Order the prompts by a hash of this number and their ids, so that each first part of them is
    a random sample of the set; `limit` then takes a sample. Default: the set's order."""
    shard_size: int = Field(64, ge=1, le=100_000)
    """The maximum number of prompts in a shard: one output file, and the most that is lost if a
    worker dies."""


class Sampling(Section):
    """The sampling settings of every arm; None: the model's documented setting."""

    steps: int | None = Field(None, ge=1, le=1000)
    """Denoising steps. Default: the model's documented number."""
    guidance_scale: float | None = Field(None, ge=0)
    """The classifier-free guidance scale. Default: the model's documented scale."""
    height: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels. Default: the model's documented height."""
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels. Default: the model's documented width."""
    scheduler: Scheduler | None = None
    """A diffusers scheduler class, or a section with `class` and its arguments. `own` means the
    checkpoint's scheduler. Default: the checkpoint's scheduler if the model has a `path`, else the
    model's documented one."""
    negative_prompt: str = ""
    """The negative prompt of all rows without their own."""
    batch_size: int = Field(8, ge=1)
    """The maximum number of images in a batch; halved if they do not fit in memory."""
    seed: int = 0
    """The run's seed. The seed of an image is derived from it, the prompt's id and the image's
    number."""
    images_per_prompt: int = Field(1, ge=1, le=10_000)
    """Images per prompt."""
    padding: bool = True
    """Pad partial batches to `batch_size` with repeated rows, so that no bit of an image depends on
    its neighbours, its position, the end of a shard or a retry. The padding is dropped."""

    @property
    def given(self) -> frozenset[str]:
        """The settings that the config sets explicitly."""
        given = ((name, getattr(self, name)) for name in self.model_fields_set)
        return frozenset(name for name, value in given if value not in (None, ""))


OWN_SCHEDULER = "the checkpoint's own"


def scheduler_of(given: str | dict[str, Any]) -> dict[str, Any]:
    """Returns the two fields of ``ResolvedSampling`` that a config's ``scheduler`` sets."""
    section = {"class": given} if isinstance(given, str) else given
    name = section["class"]
    return {
        "scheduler": OWN_SCHEDULER if name == "own" else name,
        "scheduler_arguments": {key: section[key] for key in section if key != "class"},
    }


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
GuidanceKeys = TypedDict(
    "GuidanceKeys",
    {
        "from": int,
        "until": int | float,
        "then": Literal["none", "reuse"],
        "every": int,
        "weights": list[float] | dict[int | float, float],
    },
    total=False,
)
GuidanceKeys.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]


class ForecastKeys(TypedDict, total=False):
    """Which steps are forecast, and how."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    steps: list[int]
    first: int | float
    every: int
    last: int | float
    order: int


class Arm(Section):
    """One condition to compare; an arm without settings is a baseline."""

    gate_step: int | float | None = None
    """T-GATE: from this step on, cross-attention is reused and guidance is dropped. A step number
    (the first is 0), or a fraction of the steps (0.4 of 25 is step 10)."""
    sp_interval: int = 1
    """Before the gate: compute self-attention every this many steps, and reuse it in between."""
    fi_interval: int = 1
    """After the gate: compute self-attention every this many steps; 1: at every step."""
    warm_up: int = 0
    """The number of first steps in which self-attention is always computed."""
    deepcache: dict[Literal["interval", "branch"], int] | None = None
    """DeepCache, with or without T-GATE: the interval, and the branch to cache."""
    steps: int | None = Field(None, ge=1, le=1000)
    """Denoising steps of this arm; fewer steps is the simple alternative to caching. Default: the
    run's."""
    scheduler: str | None = None
    """A diffusers scheduler class for this arm. Default: the run's."""
    guidance_from: int = 0
    """The first step with guidance; earlier steps run only the caption's branch."""
    guidance_until: int | float | None = None
    """The step from which guidance is off again: a step number, or a fraction of the steps.
    Attention is not cached, so this measures what T-GATE saves by dropping guidance alone. Default:
    guidance runs to the end."""
    guidance: GuidanceKeys | None = None
    """Guidance by steps (docs/plans.md). `from` and `until`: as guidance_from and guidance_until.
    `then: reuse`: from `until` on, the last difference of the two branches stays in force, and
    `every: 3` refreshes it every 3 steps. `weights`: guidance scales instead of guidance_scale, one
    per step or by the step they begin at ({"0": 7.5, "0.6": 3.0}); 1 runs the caption's branch
    alone."""
    forecast: ForecastKeys | None = None
    """Steps whose output is forecast instead of computed (docs/plans.md): a list of `steps`; or
    from `first` to `last` (default: the last but one), where every `every`-th step is computed
    (default 2). `order` 0 repeats the last output, 1 (default) continues its change, 2 also the
    change of that."""

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler_is_a_class(cls, scheduler: Any) -> Any:
        if isinstance(scheduler, dict):
            raise ValueError(
                "an arm's scheduler must be a class name, e.g. scheduler: EulerDiscreteScheduler. "
                "Fix: set its arguments in sampling.scheduler or in a model's scheduler"
            )
        return scheduler

    @model_validator(mode="after")
    def _valid(self) -> "Arm":
        alone = self.guidance is not None or self.forecast is not None
        reuses = (self.sp_interval, self.warm_up) != (1, 0)
        if self.gate_step is None and ((reuses and not alone) or self.fi_interval != 1):
            raise ValueError(
                "sp_interval, fi_interval and warm_up need a gate_step (sp_interval and warm_up "
                "also go with guidance or forecast). Fix: set gate_step"
            )
        if self.guidance is not None and (self.guidance_from, self.guidance_until) != (0, None):
            raise ValueError(
                "guidance_from and guidance_until are keys of guidance too. Fix: write "
                "guidance: {from: ..., until: ...}"
            )
        if self.gate_step is not None and self.interval is not None:
            raise ValueError(
                "gate_step already ends guidance. Fix: remove guidance_from, guidance_until and "
                "guidance, or set them in a separate arm"
            )
        self.combined_plan, self.cache  # noqa: B018  building them validates their values
        return self

    @property
    def plan(self) -> GatePlan | None:
        if self.gate_step is None:
            return None
        return GatePlan(self.gate_step, self.sp_interval, self.fi_interval, self.warm_up)

    @property
    def interval(self) -> GuidanceInterval | None:
        """The plan of guidance, if the arm has one."""
        given: dict[str, Any] = dict(self.guidance or {})
        names = {"first": "guidance.from", "end": "guidance.until"}
        if self.guidance is None:
            given = {"from": self.guidance_from, "until": self.guidance_until}
            names = {"first": "guidance_from", "end": "guidance_until"}
            if (self.guidance_from, self.guidance_until) == (0, None):
                return None
        if given == {}:
            raise ValueError("guidance has no key. Fix: give from, until or weights")
        first, end = given.pop("from", 0), given.pop("until", None)
        scale = self.largest_weight
        return _renamed(names, lambda: GuidanceInterval(first, end, **given, scale=scale))

    @property
    def largest_weight(self) -> float | None:
        """The largest weight of guidance: the guidance scale of the arm's images; None if none."""
        weights = (self.guidance or {}).get("weights")
        if not weights:
            return None
        return max(weights.values() if isinstance(weights, dict) else weights)

    @property
    def combined_plan(self) -> Plan | None:
        """Everything that the arm plans by steps, in one table."""
        forecast: Any = None if self.forecast is None else dict(self.forecast)
        attention = self.gate_step is None and (self.sp_interval, self.warm_up) != (1, 0)
        return combined(
            self.plan,
            self.interval,
            SelfAttentionInterval(self.sp_interval, self.warm_up) if attention else None,
            None if forecast is None else _renamed({}, lambda: Forecast(**forecast)),
        )

    @property
    def cache(self) -> DeepCache | None:
        return None if self.deepcache is None else DeepCache(**self.deepcache)

    @property
    def is_baseline(self) -> bool:
        return self == Arm()

    @property
    def settings(self) -> dict[str, int | float | str | None]:
        """Every setting of the arm that affects its images, as a flat dict.

        Settings of later versions appear only if they are set, so the identity of older outputs
        does not change.
        """
        cache = None if self.cache is None else asdict(self.cache)
        first = {"gate_step", "sp_interval", "fi_interval", "warm_up"}
        flat = self.model_dump(include=first)
        nested = {"guidance", "forecast"}
        flat |= self.model_dump(exclude={"deepcache", *first, *nested}, exclude_defaults=True)
        for name in sorted(nested):
            for key, value in sorted((getattr(self, name) or {}).items()):
                plain = isinstance(value, int | float | str)
                flat[f"{name}.{key}"] = value if plain else json.dumps(value)
        return flat | {f"deepcache.{key}": cache and cache[key] for key in ("interval", "branch")}


def _renamed(names: dict[str, str], make: Callable[[], Any]) -> Any:
    """Returns ``make()``; an error that begins with a name of ``names`` gets its key instead."""
    try:
        return make()
    except ValueError as error:
        message = str(error)
        for name, key in names.items():
            if message.startswith(f"{name}="):
                message = key + message.removeprefix(name)
        raise ValueError(message) from None


class Workers(Section):
    """The workers that render and measure: between ``min`` and ``max``, as the cluster allows."""

    executor: str = "ray"
    """`ray`, or `local` (one worker in this process, without Ray)."""
    min: int = Field(1, ge=1)
    """The number of workers to keep while there is work."""
    max: int | None = Field(None, ge=1)
    """The maximum number of workers. Default: as many as the cluster and the work allow."""
    gpus_each: float = Field(0, ge=0)
    """GPUs per worker; with a fraction, several workers share one GPU. 0 renders on the CPU."""
    cpus_each: int = Field(1, ge=1)
    """CPUs per worker, and its number of threads if it renders on the CPU."""
    room_within: float | None = Field(None, gt=0)
    """Seconds to wait for resources for the first worker; then the run ends with exit code 4.
    Default: 900 if no machine is large enough for a worker, no limit if the machines are busy."""
    hang_after: float = Field(900, gt=0)
    """Replace a worker that reports nothing for this many seconds (or for 20 typical batches, if
    longer)."""

    @model_validator(mode="after")
    def _at_most_max(self) -> "Workers":
        if self.max is not None and self.min > self.max:
            raise ValueError(
                f"min {self.min} is more than max {self.max}. Fix: set max to at least {self.min}"
            )
        return self


class Engine(Section):
    """How the pipeline computes; images change in the last bits at most."""

    compile: bool | Literal["regional"] = False
    """Compile the denoiser with torch.compile: minutes at first, then faster. `regional` compiles
    only its repeated transformer blocks, so the first image is ready sooner."""
    channels_last: bool = True
    """Use the channels-last memory layout, in which convolutions are fastest."""
    fused_qkv: bool = False
    """Fuse the query, key and value projections into one matrix."""
    attention: Literal["flash", "efficient", "cudnn", "math"] | None = None
    """The attention kernel. Default: torch chooses."""
    decode_batch_size: int | None = Field(None, ge=1)
    """The number of images that the VAE decodes at a time. Default: the whole batch."""
    offload_text_encoder: bool = False
    """Keep the text encoders in main memory during denoising."""


class Images(Section):
    """How images are stored."""

    format: str = "webp"
    """`webp` or `png` (both lossless here), or `jpeg` (lossy, changes FID)."""
    quality: int = Field(95, ge=1, le=100)
    """The quality of a lossy format."""
    mark: bool = True
    """Mark every image as AI-generated in its XMP (IPTC digital source type)."""


class Score(Section):
    """What the images are compared with; each registry refuses names that it does not know."""

    reference: str | None = None
    """The reference images: an .npz of tgate-batch reference or pytorch-fid, a folder or a pattern
    (`shards/*.tar`) of images or tar files, or `drawn` (the demo's drawings of the baseline's
    prompts). `{extractor}` is replaced by each extractor's name. Default: no reference, so no
    distance is measured."""
    extractor: tuple[str, ...] = Field(("efficientnet-lite0",), min_length=1)
    """One or several feature extractors. Only `inception` makes the distance FID."""
    reference_skip_unreadable: bool = False
    """Skip and count unreadable reference images (truncated, damaged). If false, the first one
    stops the run with an error that names it."""
    by: str | None = None
    """A column of the prompt set by whose values the figures are broken down."""
    weights: dict[str, str] = {}
    """The location of weights, by metric (clip, lpips, ...) or `extractor`. A metric that needs
    weights is measured only if they are given."""

    @field_validator("extractor", mode="before")
    @classmethod
    def _one_or_several(cls, extractor: Any) -> Any:
        return (extractor,) if isinstance(extractor, str) else extractor

    @field_validator("extractor")
    @classmethod
    def _extractors_differ(cls, extractor: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(extractor)) < len(extractor):
            raise ValueError("an extractor is listed twice. Fix: list it once")
        return extractor

    @model_validator(mode="before")
    @classmethod
    def _one_place_for_weights(cls, data: Any) -> Any:
        """Moves the old keys `clip`, `lpips` and `extractor_path` into `weights`."""
        if not isinstance(data, dict) or not isinstance(data.get("weights") or {}, dict):
            return data
        data = {key: data[key] for key in data if key != "bootstrap"}  # in older outputs
        weights = dict(data.get("weights") or {})
        for old, name in _OLD_WEIGHTS.items():
            if old not in data:
                continue
            if name in weights and weights[name] != data[old]:
                raise ValueError(
                    f"{old!r} and 'weights.{name}' are the same setting but differ "
                    f"({data[old]!r}, {weights[name]!r}). Fix: set only 'weights.{name}'"
                )
            weights[name] = data[old]
        given = {name: where for name, where in weights.items() if where is not None}
        return {key: data[key] for key in data if key not in _OLD_WEIGHTS} | {"weights": given}


_OLD_WEIGHTS = {"clip": "clip", "lpips": "lpips", "extractor_path": "extractor"}


class Threshold(Section):
    """A bound on one figure of the report; the run fails if an arm violates it.

    ``no_worse_than``, ``at_least`` and ``at_most`` test the bound of the figure's interval, so
    noise cannot hide a regression. ``min`` and ``max`` test the value itself, as MLPerf's rules do.
    """

    no_worse_than: float | None = None
    """The bound of a change's interval; signed, so a decrease is negative."""
    at_least: float | None = None
    """The minimum of the interval's lower bound."""
    at_most: float | None = None
    """The maximum of the interval's upper bound."""
    min: float | None = None
    """The minimum of the value itself."""
    max: float | None = None
    """The maximum of the value itself."""

    @model_validator(mode="after")
    def _bounded(self) -> "Threshold":
        given = [key for key, value in self if value is not None]
        if not given:
            raise ValueError(
                "a threshold needs a test (no_worse_than, at_least, at_most) or a window (min, max)"
            )
        if len(given) > 1 and not set(given) <= {"min", "max"}:
            raise ValueError(f"{given[0]} and {given[1]} cannot be combined. Fix: keep one of them")
        return self


class Thresholds(Section):
    """Thresholds by figure name, and the result of an undecided threshold."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Threshold] = Field(init=False)

    undecided: Literal["pass", "fail"] = "fail"
    """Whether an undecided threshold (too few prompts) passes or fails the run."""

    @property
    def figures(self) -> dict[str, Threshold]:
        """Figure name -> threshold."""
        return self.__pydantic_extra__ or {}


class FindPlan(Section):
    """What `tgate-batch find-plan` searches for: the cheapest plan within every limit."""

    limits: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How much a plan may lose, by figure, in the figure's units: `{prompt_accuracy: 0.02}` allows
    2 points. `--lose-at-most` adds one."""
    plans: tuple[Arm, ...] = ()
    """The plans to search, each with the keys of an arm. Default: the plans of `families`, and the
    config's own arms."""
    families: tuple[str, ...] = ()
    """The kinds of plans to search: `steps`, `gate`, `guidance` (that ends), `reuse` (guidance
    whose difference is reused and refreshed), `forecast`, `deepcache`. Default: all that the
    pipeline supports."""
    prompts: int | None = Field(None, ge=1)
    """How many prompts to use, sampled from the set. Default: `prompts.limit`, or all."""
    confidence: float = Field(0.95, ge=0.5, le=0.999)
    """The probability that the recommended plan keeps every limit."""


class Cost(Section):
    """Device prices; a worker costs its GPUs (``workers.gpus_each``), or else its CPUs."""

    usd_per_gpu_hour: float | None = Field(None, ge=0)
    """The price of one GPU per hour."""
    usd_per_cpu_hour: float | None = Field(None, ge=0)
    """The price of one CPU per hour, for workers without a GPU."""


class Config(Section):
    """One run, with one output folder."""

    models: tuple[Model, ...] = Field(min_length=1)
    """Catalogue names, or sections with a `name`; rendered one after another."""
    prompts: Prompts
    sampling: Sampling = Sampling()
    arms: dict[Name, Arm] = Field(min_length=1)
    """The conditions to compare, by name. The first without settings is the baseline."""
    workers: Workers = Workers()
    engine: Engine = Engine()
    images: Images = Images()
    score: Score = Score()
    cost: Cost = Cost()
    thresholds: Thresholds = Thresholds()
    """Bounds by figure of report.json. The exit code is 3 if an arm violates one."""
    find_plan: FindPlan = FindPlan()
    max_errors: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | None = 0.01
    """How many images may fail: a number, or a fraction of all images (then at least one). With
    more failures the run stops with exit code 4. null: any number."""
    plugins: tuple[Module, ...] = ()
    """Python modules that define your own FAMILY or METRIC."""
    output: str
    """The output folder, or a URI (s3://, gs://). Rerun the same command to continue an interrupted
    run."""

    @model_validator(mode="before")
    @classmethod
    def _gates_have_a_new_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "gates" in data:
            raise ValueError("the key 'gates' was renamed. Fix: rename it to 'thresholds'")
        return data

    @field_validator("models", mode="before")
    @classmethod
    def _short_names(cls, models: Any) -> Any:
        if not isinstance(models, list | tuple):
            return models
        return [{"name": model} if isinstance(model, str) else model for model in models]

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_arms(cls, arms: Any) -> Any:
        if not isinstance(arms, dict):
            return arms
        return {str(name): {} if arm is None else arm for name, arm in arms.items()}

    @model_validator(mode="after")
    def _names_differ(self) -> "Config":
        names = [model.name for model in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"model {twice[0]!r} is listed twice. Fix: rename one")
        return self

    @property
    def baseline(self) -> str | None:
        """The first arm without settings, the baseline of the others; None if there is none."""
        return next((name for name, arm in self.arms.items() if arm.is_baseline), None)
