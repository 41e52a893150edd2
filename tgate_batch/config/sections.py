"""A run as validated data: frozen sections, unknown keys refused.

The text below a key is its description, for the reference of configs and for editors.
"""

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

from tgate_batch.gate.plan import DeepCache, GatePlan, GuidanceInterval
from tgate_batch.records import Kind, RowSettings

# A name becomes a folder (`arm=<name>`): no separators, no leading dot, nothing to escape.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


# A module is imported by its name, never found by a path.
Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def _class_and_arguments(value: Any) -> Any:
    named = value.get("class") if isinstance(value, dict) else value
    if value is not None and not (isinstance(named, str) and named):
        raise ValueError(
            "a scheduler is a class of diffusers, or a section with its class and arguments, as "
            "{class: EulerDiscreteScheduler, timestep_spacing: trailing}"
        )
    return value


# A class by its name, or a section: `class`, and arguments of the class.
Scheduler = Annotated[str | dict[str, Any], BeforeValidator(_class_and_arguments)]


class Lora(Section):
    """A LoRA: safetensors that are added to a model's weights once, when it is loaded."""

    path: str
    """A folder, a hub id, or a .safetensors file."""
    weight_name: str | None = None
    """The file in the folder or at the hub. Left out: the only .safetensors of the folder; at the
    hub pytorch_lora_weights.safetensors."""
    scale: float = 1.0
    """How much of it is added."""


class Model(Section):
    """A model by its name, and where it lies if it is not the catalogue's (docs/models.md)."""

    name: Name
    """A name of the catalogue (docs/models.md), or with a `path` any name; pictures are kept under
    it."""
    path: str | None = None
    """The checkpoint: a folder, a hub id, or one .safetensors file. Its own scheduler stays. Left
    out: the one that the catalogue names."""
    revision: str | None = None
    """Of a hub id in `path`: a branch, a tag or a commit. Left out: the main branch."""
    config: str | None = None
    """Of a single file: the folder or hub id of a pipeline with its configurations, tokenizers and
    scheduler. Left out: the catalogue's checkpoint of its kind."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The numbers it computes with. `auto`: float16 (Sana, Wan: bfloat16) on a GPU, else
    float32."""
    scheduler: Scheduler | None = None
    """As `sampling.scheduler`, for this model alone."""
    loras: tuple[Lora, ...] = ()
    """LoRAs, added together to the weights when the model is loaded."""
    unet: str | None = None
    """A folder or hub id with a `config.json`: a U-Net in place of the checkpoint's."""
    vae: str | None = None
    """A folder or hub id with a `config.json`: a VAE in place of the checkpoint's."""


class Columns(Section):
    """Columns of the prompt set that say how their row is drawn, found without regard to case.

    An empty cell is the run's setting (`sampling`). null switches a column off.
    """

    negative_prompt: str | None = "negative_prompt"
    """What guidance leads away from."""
    seed: str | None = "seed"
    """The seed of the row's first picture; further ones have seeds made of it."""
    guidance_scale: str | None = "guidance_scale"
    """The weight of guidance. Rows of differing weight share batches where the model allows it."""
    height: str | None = "height"
    """Pixels, a multiple of 8."""
    width: str | None = "width"
    """Pixels, a multiple of 8."""
    steps: str | None = "steps"
    """Denoising steps; a column `num_inference_steps` is found too. An arm's own steps count
    more."""
    strength: str | None = "strength"
    """Image-to-image, where the set has pictures too: how much of its picture a row replaces, above
    0 and at most 1. An empty cell is `prompts.strength`."""


class Prompts(Section):
    """The prompt set and how it is cut."""

    path: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """A .txt, .csv, .tsv, .jsonl, .parquet file or COCO's captions .json, also with .gz; a path or
    a URI. A pattern (`part-*.csv`), a folder, or a list of these is read in order. `demo`: the
    embedded model's captions."""
    id_column: str | None = None
    """The column of ids. Left out: one named like an id, else ids are made of the content. Names of
    columns are found without regard to case."""
    text_column: str | None = None
    """The column of captions. Left out: one named like a caption."""
    image_column: str | None = None
    """The column of pictures (bytes or paths) that image-to-video and image-to-image begin with."""
    strength: float | None = Field(None, gt=0, le=1)
    """Rows begin with their picture and replace so much of it (image-to-image); of `steps` only
    that part is run. An empty cell is a row without a picture. Left out: a caption's picture is
    used where its row has a `strength`."""
    columns: Columns = Columns()
    keep: bool | tuple[str, ...] = False
    """Further columns that the output's rows carry on, as JSON in `kept`; true: all that are not
    used."""
    limit: int | None = Field(None, ge=1)
    """Prompts to draw, of those after `offset`. A larger one later joins further prompts."""
    offset: int = Field(0, ge=0)
    """Prompts to pass over at the beginning."""
    shard_size: int = Field(64, ge=1, le=100_000)
    """The most prompts in a shard: in one file, and lost at most where a worker dies."""


class Sampling(Section):
    """How every arm samples; None: the model's documented setting."""

    steps: int | None = Field(None, ge=1, le=1000)
    """Denoising steps. Left out: the model's documented number."""
    guidance_scale: float | None = Field(None, ge=0)
    """The weight of classifier-free guidance. Left out: the model's documented one."""
    height: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels. Left out: the model's documented height."""
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels. Left out: the model's documented width."""
    scheduler: Scheduler | None = None
    """A scheduler class of diffusers, or a section: `class`, and arguments of it. `own` is the
    checkpoint's. Left out: the checkpoint's under a `path`, else the model's documented one."""
    negative_prompt: str = ""
    """What guidance leads away from, the same for every prompt."""
    batch_size: int = Field(8, ge=1)
    """Pictures a batch, at most; halved where they do not fit in memory."""
    seed: int = 0
    """The run's seed. A picture's own is made of it, the prompt's id and the picture's number."""
    images_per_prompt: int = Field(1, ge=1, le=10_000)
    """Pictures of each prompt."""
    padding: bool = True
    """Batches are filled up to `batch_size` with rows drawn twice, so that not a bit of a picture
    depends on its neighbours, its place, a shard's end or a retry. What is filled in is dropped."""


OWN_SCHEDULER = "the checkpoint's own"
_GUIDED = 2.0  # a scale at which guidance runs


def scheduler_of(given: str | dict[str, Any]) -> dict[str, Any]:
    """The two settings of ``ResolvedSampling`` that a config's ``scheduler`` decides."""
    section = {"class": given} if isinstance(given, str) else given
    name = section["class"]
    return {
        "scheduler": OWN_SCHEDULER if name == "own" else name,
        "scheduler_arguments": {key: section[key] for key in section if key != "class"},
    }


class ResolvedSampling(Section):
    """How one model samples, with nothing left open."""

    steps: int
    guidance_scale: float
    height: int  # pixels
    width: int  # pixels
    scheduler: str  # a diffusers scheduler class, or OWN_SCHEDULER
    scheduler_arguments: dict[str, Any] = {}  # that its class is given beside the checkpoint's
    negative_prompt: str
    batch_size: int  # pictures a batch
    seed: int
    images_per_prompt: int
    padding: bool
    strength: float | None = None  # of rows that begin with a picture

    @property
    def steps_run(self) -> int:
        """Denoising steps that are run: with a picture to begin with, the last ones alone."""
        return self.steps if self.strength is None else int(self.steps * self.strength)

    def under(self, arm: "Arm") -> "ResolvedSampling":
        """The sampling of an arm that has steps or a scheduler of its own."""
        own: dict[str, Any] = {"steps": arm.steps, "scheduler": arm.scheduler}
        own = {key: value for key, value in own.items() if value}
        if "scheduler" in own:
            own["scheduler_arguments"] = {}
        return self.model_copy(update=own)

    def of_row(self, own: RowSettings) -> "ResolvedSampling":
        """That of a row with settings of its own, but for its seed."""
        said = {key: value for key, value in own._asdict().items() if value is not None}
        said.pop("seed", None)
        return self.model_copy(update=said) if said else self

    def of_kind(self, kind: Kind) -> "ResolvedSampling":
        """What rows of a kind have in common; of differing scales, one stands for all of them."""
        taken = ("height", "width", "steps", "strength")
        said: dict[str, Any] = {key: getattr(kind, key) for key in taken}
        said["guidance_scale"] = kind.guidance_scale
        if kind.guided is not None and kind.guidance_scale is None:
            guided = max(self.guidance_scale, _GUIDED)
            said["guidance_scale"] = guided if kind.guided else min(self.guidance_scale, 1.0)
        return self.model_copy(
            update={key: value for key, value in said.items() if value is not None}
        )


class Arm(Section):
    """One condition under comparison; with nothing set it is a baseline."""

    gate_step: int | float | None = None
    """T-GATE: from this step on (the first is 0), or from this part of the steps on (0.4 of 25 is
    step 10), cross-attention is reused and guidance dropped."""
    sp_interval: int = 1
    """Before the gate, self-attention is computed every so many steps and reused between."""
    fi_interval: int = 1
    """After the gate, self-attention is computed every so many steps; 1: at each."""
    warm_up: int = 0
    """Steps at the beginning in which self-attention is always computed."""
    deepcache: dict[Literal["interval", "branch"], int] | None = None
    """DeepCache beside or in place of a plan: the interval, and the branch that is cached."""
    steps: int | None = Field(None, ge=1, le=1000)
    """Denoising steps of this arm alone: the plain rival of every cache. Left out: the run's."""
    scheduler: str | None = None
    """A scheduler class of diffusers for this arm alone. Left out: the run's."""
    guidance_from: int = 0
    """The first step with guidance; before it the caption's branch runs by itself."""
    guidance_until: int | float | None = None
    """The first step without guidance again, or that part of the steps; attention is left as it is.
    What a gate saves of guidance alone. Left out: guidance runs to the end."""

    @model_validator(mode="after")
    def _valid(self) -> "Arm":
        if self.gate_step is None and (self.sp_interval, self.fi_interval, self.warm_up) != (
            1,
            1,
            0,
        ):
            raise ValueError("a plan needs its gate_step (the first fidelity-improving step)")
        self.plan, self.guidance, self.cache  # noqa: B018  building them validates their values
        if self.gate_step is not None and self.guidance is not None:
            raise ValueError(
                "gate_step ends guidance by itself; leave guidance_from and guidance_until out, or "
                "give an arm of its own to them"
            )
        return self

    @property
    def plan(self) -> GatePlan | None:
        if self.gate_step is None:
            return None
        return GatePlan(self.gate_step, self.sp_interval, self.fi_interval, self.warm_up)

    @property
    def guidance(self) -> GuidanceInterval | None:
        if self.guidance_from == 0 and self.guidance_until is None:
            return None
        try:
            return GuidanceInterval(self.guidance_from, self.guidance_until)
        except ValueError as error:
            names = {"first=": "guidance_from=", "end=": "guidance_until="}
            told = str(error)
            for name, key in names.items():
                told = told.replace(name, key) if told.startswith(name) else told
            raise ValueError(told) from None

    @property
    def cache(self) -> DeepCache | None:
        return None if self.deepcache is None else DeepCache(**self.deepcache)

    @property
    def is_baseline(self) -> bool:
        return self == Arm()

    @property
    def settings(self) -> dict[str, int | float | str | None]:
        """Every setting of the arm, flat: what decides its pictures.

        The later ones are in it only where they are set, so that older outputs stay as they are.
        """
        cache = None if self.cache is None else asdict(self.cache)
        later = {"steps", "scheduler", "guidance_from", "guidance_until"}
        flat = self.model_dump(exclude={"deepcache", *later})
        flat |= self.model_dump(include=later, exclude_defaults=True)
        return flat | {f"deepcache.{key}": cache and cache[key] for key in ("interval", "branch")}


class Workers(Section):
    """Who renders and measures: between ``min`` and ``max`` workers, as the cluster offers."""

    executor: str = "ray"
    """`ray`, or `local`: one worker in this process, without Ray."""
    min: int = Field(1, ge=1)
    """Workers that are kept while there is work."""
    max: int | None = Field(None, ge=1)
    """The most workers. Left out: as many as there is room and work for."""
    gpus_each: float = Field(0, ge=0)
    """GPUs of a worker; a share puts several on one. 0 renders on the CPU."""
    cpus_each: int = Field(1, ge=1)
    """CPUs of a worker, and its number of threads where it computes on them."""
    room_within: float | None = Field(None, gt=0)
    """Seconds to wait for a place for the first worker; then the run ends with exit code 4. Left
    out: 900 where no machine is large enough for one, no limit where others use the machines."""
    hang_after: float = Field(900, gt=0)
    """Seconds without a word after which a worker is replaced, or 20 usual batches if longer."""

    @model_validator(mode="after")
    def _at_most_max(self) -> "Workers":
        if self.max is not None and self.min > self.max:
            raise ValueError(
                f"min {self.min} is more than max {self.max}; give a max of at least {self.min}"
            )
        return self


class Engine(Section):
    """How the pipeline computes; what is drawn changes in the last bits at most."""

    compile: bool | Literal["regional"] = False
    """torch.compile of the denoiser: minutes at first, then faster. `regional`: of its transformer
    blocks alone, which repeat, so that the first picture comes sooner."""
    channels_last: bool = True
    """The memory layout in which convolutions are fastest."""
    fused_qkv: bool = False
    """One matrix for query, key and value."""
    attention: Literal["flash", "efficient", "cudnn", "math"] | None = None
    """The kernel of attention. Left out: torch chooses."""
    decode_batch_size: int | None = Field(None, ge=1)
    """Pictures that the VAE decodes at a time. Left out: the whole batch."""
    offload_text_encoder: bool = False
    """Keep text encoders in main memory while pictures are denoised."""


class Images(Section):
    """How pictures are stored."""

    format: str = "webp"
    """`webp` or `png`, both lossless here, or `jpeg`, which changes FID."""
    quality: int = Field(95, ge=1, le=100)
    """Of a format that loses some."""
    mark: bool = True
    """Every picture says in its XMP that a model made it (IPTC's digital source type)."""


class Score(Section):
    """What the pictures are compared with; owners of the names in it refuse unknown ones."""

    reference: str | None = None
    """What pictures are compared with: an .npz of tgate-batch reference or pytorch-fid, a folder,
    `drawn` (the baseline's prompts as drawn pictures of the demo), or nothing: no distance.
    `{extractor}` in it stands for each extractor's name."""
    extractor: tuple[str, ...] = Field(("efficientnet-lite0",), min_length=1)
    """What takes the features; one or several. `inception` alone makes the distance FID."""
    by: str | None = None
    """A column of the prompt set: figures of pictures are broken down by its values."""
    weights: dict[str, str] = {}
    """Where weights are, by metric (clip, lpips, ...) or `extractor`. A metric that needs some is
    measured where they are given."""

    @field_validator("extractor", mode="before")
    @classmethod
    def _one_or_several(cls, extractor: Any) -> Any:
        return (extractor,) if isinstance(extractor, str) else extractor

    @field_validator("extractor")
    @classmethod
    def _extractors_differ(cls, extractor: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(extractor)) < len(extractor):
            raise ValueError("an extractor is listed twice")
        return extractor

    @model_validator(mode="before")
    @classmethod
    def _one_place_for_weights(cls, data: Any) -> Any:
        """Moves the older keys `clip`, `lpips` and `extractor_path` into `weights`."""
        if not isinstance(data, dict) or not isinstance(data.get("weights") or {}, dict):
            return data
        data = {key: data[key] for key in data if key != "bootstrap"}  # older outputs have it
        weights = dict(data.get("weights") or {})
        for old, name in _OLD_WEIGHTS.items():
            if old not in data:
                continue
            if name in weights and weights[name] != data[old]:
                raise ValueError(
                    f"{old!r} and 'weights.{name}' are one setting and differ "
                    f"({data[old]!r}, {weights[name]!r}); give 'weights.{name}' alone"
                )
            weights[name] = data[old]
        given = {name: where for name, where in weights.items() if where is not None}
        return {key: data[key] for key in data if key not in _OLD_WEIGHTS} | {"weights": given}


_OLD_WEIGHTS = {"clip": "clip", "lpips": "lpips", "extractor_path": "extractor"}


class Threshold(Section):
    """What one figure of the report has to keep; an arm that does not fails the run.

    A test judges the figure's interval, so that noise alone does not pass a harm; ``min`` and
    ``max`` are a window on the value itself, for rules that are written so (MLPerf's).
    """

    no_worse_than: float | None = None
    """Of a change: the interval's bound; signed, so that a fall is negative."""
    at_least: float | None = None
    """The interval's lower bound."""
    at_most: float | None = None
    """The interval's upper bound."""
    min: float | None = None
    """The value itself."""
    max: float | None = None
    """The value itself."""

    @model_validator(mode="after")
    def _bounded(self) -> "Threshold":
        given = [key for key, value in self if value is not None]
        if not given:
            raise ValueError(
                "a threshold needs a test (no_worse_than, at_least, at_most) or a window (min, max)"
            )
        if len(given) > 1 and not set(given) <= {"min", "max"}:
            raise ValueError(f"{given[0]} and {given[1]} cannot be one threshold; give one of them")
        return self


class Thresholds(Section):
    """A threshold by the figure's name; and what a figure counts that a run is too small for."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Threshold] = Field(init=False)

    undecided: Literal["pass", "fail"] = "fail"
    """What a figure counts whose run is too small for a verdict."""

    @property
    def figures(self) -> dict[str, Threshold]:
        """Figure -> its threshold."""
        return self.__pydantic_extra__ or {}


class Cost(Section):
    """What devices cost; a worker costs its GPUs (``workers.gpus_each``), or its CPUs without."""

    usd_per_gpu_hour: float | None = Field(None, ge=0)
    """The price of a GPU an hour."""
    usd_per_cpu_hour: float | None = Field(None, ge=0)
    """The price of a CPU an hour, for workers without a GPU."""


class Config(Section):
    """One run into one output folder."""

    models: tuple[Model, ...] = Field(min_length=1)
    """Names of the catalogue, or sections with a `name`; drawn one after another."""
    prompts: Prompts
    sampling: Sampling = Sampling()
    arms: dict[Name, Arm] = Field(min_length=1)
    """A name -> a condition. The first without a plan is the baseline that others stand beside."""
    workers: Workers = Workers()
    engine: Engine = Engine()
    images: Images = Images()
    score: Score = Score()
    cost: Cost = Cost()
    thresholds: Thresholds = Thresholds()
    """A figure of report.json -> what it has to keep; exit code 3 where it does not."""
    max_errors: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    """Pictures that may fail before a run stops: a number, or a share of those it is to draw."""
    plugins: tuple[Module, ...] = ()
    """Modules with a FAMILY or a METRIC of your own."""
    output: str
    """The output folder, or a URI (s3://, gs://). The same command there goes on."""

    @model_validator(mode="before")
    @classmethod
    def _gates_have_a_new_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and "gates" in data:
            raise ValueError("the key 'gates' has a new name; rename it to 'thresholds'")
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
            raise ValueError(f"model {twice[0]!r} is listed twice; rows are kept by model name")
        return self

    @property
    def baseline(self) -> str | None:
        """The first ungated arm, which the others are compared with."""
        return next((name for name, arm in self.arms.items() if arm.is_baseline), None)
