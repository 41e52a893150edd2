"""A run, as validated data: YAML in, frozen models out, unknown keys refused."""

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tgate_batch.errors import UserError
from tgate_batch.gate.plan import DeepCache, GatePlan

# A name becomes a folder (`arm=<name>`): no separators, no leading dot, nothing to escape.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Model(Section):
    """A name of the catalogue, and where its checkpoint lies if not at the documented one."""

    name: Name
    path: str | None = None  # a local folder or a hub id; None: the catalogue's checkpoint
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"  # auto: float16 on a GPU


class Prompts(Section):
    """The prompt set and how it is cut."""

    path: str
    id_column: str | None = None  # None: guessed by name, else ids are made from the content
    text_column: str | None = None  # None: guessed by name
    image_column: str | None = None  # conditioning pictures (bytes or paths), image-to-video only
    limit: int | None = Field(None, ge=1)  # prompts
    offset: int = Field(0, ge=0)  # prompts
    shard_size: int = Field(64, ge=1, le=100_000)  # prompts a shard


class Sampling(Section):
    """How every arm samples; None: the model's documented setting."""

    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0)
    height: int | None = Field(None, ge=8, multiple_of=8)  # pixels
    width: int | None = Field(None, ge=8, multiple_of=8)  # pixels
    scheduler: str | None = None  # a diffusers scheduler class; None: the checkpoint's own
    negative_prompt: str = ""
    batch_size: int = Field(8, ge=1)  # pictures a batch
    seed: int = 0
    images_per_prompt: int = Field(1, ge=1, le=10_000)


OWN_SCHEDULER = "the checkpoint's own"


class ResolvedSampling(Section):
    """How one model samples, with nothing left open."""

    steps: int
    guidance_scale: float
    height: int  # pixels
    width: int  # pixels
    scheduler: str  # a diffusers scheduler class, or OWN_SCHEDULER
    negative_prompt: str
    batch_size: int  # pictures a batch
    seed: int
    images_per_prompt: int


class Arm(Section):
    """One condition under comparison; without a plan or DeepCache it is a baseline."""

    gate_step: int | None = None
    sp_interval: int = 1
    fi_interval: int = 1
    warm_up: int = 0
    deepcache: dict[Literal["interval", "branch"], int] | None = None

    @model_validator(mode="after")
    def _valid(self) -> "Arm":
        if self.gate_step is None and (self.sp_interval, self.fi_interval, self.warm_up) != (
            1,
            1,
            0,
        ):
            raise ValueError("a plan needs its gate_step (the first fidelity-improving step)")
        self.plan, self.cache  # noqa: B018  building them validates their values
        return self

    @property
    def plan(self) -> GatePlan | None:
        if self.gate_step is None:
            return None
        return GatePlan(self.gate_step, self.sp_interval, self.fi_interval, self.warm_up)

    @property
    def cache(self) -> DeepCache | None:
        return None if self.deepcache is None else DeepCache(**self.deepcache)

    @property
    def is_baseline(self) -> bool:
        return self == Arm()

    @property
    def settings(self) -> dict[str, int | None]:
        """Every setting of the arm, flat: what decides its pictures."""
        cache = None if self.cache is None else asdict(self.cache)
        flat = self.model_dump(exclude={"deepcache"})
        return flat | {f"deepcache.{key}": cache and cache[key] for key in ("interval", "branch")}


class Workers(Section):
    """Who renders and measures: between ``min`` and ``max`` workers, as the cluster offers."""

    executor: str = "ray"  # or `local`: one worker in this process, without Ray
    min: int = Field(1, ge=1)
    max: int | None = Field(None, ge=1)  # None: as many as the cluster has room for
    gpus_each: float = Field(0, ge=0)
    cpus_each: int = Field(1, ge=1)  # also the number of torch threads on a CPU
    # seconds without a word after which a worker hangs, unless its batches take as long
    hang_after: float = Field(900, gt=0)


class Engine(Section):
    """How the pipeline computes; what is drawn changes in the last bits at most."""

    compile: bool = False  # torch.compile of the denoiser: minutes at first, then faster
    channels_last: bool = True  # the memory layout in which convolutions are fastest
    fused_qkv: bool = False  # one matrix for query, key and value
    attention: Literal["flash", "efficient", "cudnn", "math"] | None = None  # None: torch chooses
    decode_batch_size: int | None = Field(None, ge=1)  # pictures; None: the whole batch
    offload_text_encoder: bool = False  # in main memory while pictures are denoised


class Images(Section):
    """How pictures are stored."""

    format: str = "webp"  # or `png`; both are lossless here. `jpeg` changes FID
    quality: int = Field(95, ge=1, le=100)  # of a format that loses some


class Score(Section):
    """What the pictures are compared with; owners of the names in it refuse unknown ones."""

    # .npz (of jobs/reference.py or pytorch-fid), a folder, `drawn`, or None: no distance
    reference: str | None = None  # `{extractor}` in it stands for each extractor's name
    # one or several; `inception` is the only one whose distance is FID
    extractor: tuple[str, ...] = Field(("efficientnet-lite0",), min_length=1)
    by: str | None = None  # a column of the prompt set: figures of pictures by its values too
    # metric (clip, lpips, ...) or `extractor` -> where its weights are; a metric that needs some
    # is measured where they are given
    weights: dict[str, str] = {}

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

    no_worse_than: float | None = None  # a change: as signed, a fall where higher is better
    at_least: float | None = None  # the lower bound of the interval
    at_most: float | None = None  # the upper bound of the interval
    min: float | None = None  # the value
    max: float | None = None  # the value

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

    @property
    def figures(self) -> dict[str, Threshold]:
        """Figure -> its threshold."""
        return self.__pydantic_extra__ or {}


class Cost(Section):
    """What devices cost; a worker costs its GPUs (``workers.gpus_each``), or its CPUs without."""

    usd_per_gpu_hour: float | None = Field(None, ge=0)
    usd_per_cpu_hour: float | None = Field(None, ge=0)


class Config(Section):
    """One run into one output folder."""

    models: tuple[Model, ...] = Field(min_length=1)
    prompts: Prompts
    sampling: Sampling = Sampling()
    arms: dict[Name, Arm] = Field(min_length=1)
    workers: Workers = Workers()
    engine: Engine = Engine()
    images: Images = Images()
    score: Score = Score()
    cost: Cost = Cost()
    thresholds: Thresholds = Thresholds()  # figure -> its threshold; exit code 3 outside
    # pictures that may fail before a run stops: a number, or a share of those that it is to draw
    max_errors: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | None = 0.5
    plugins: tuple[str, ...] = ()  # modules with a FAMILY or a METRIC of one's own
    output: str

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


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML config and lays ``a.b=value`` overrides over it.

    Raises UserError, naming the file and the field, for anything that cannot be run.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"config {path} holds no keys; see configs/demo.yaml for an example")
    for override in overrides:
        _override(data, override)
    return parse(data, source=str(path))


def parse(data: dict, source: str = "config") -> Config:
    """Validates plain data; raises UserError with the first fault found, in one line."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def _override(data: dict, override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key.strip():
        raise UserError(f"--set {override!r} is not of the form a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.strip().split(".")
    here: Any = data
    for depth, part in enumerate(parents):
        following = _item(here, part, override)
        if following is None:
            following = here[part] = {}
        if isinstance(following, str) and parents[:depth] == ["models"]:
            following = here[int(part)] = {"name": following}
        here = following
    if isinstance(here, list):
        _item(here, last, override)
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise UserError(f"--set {override!r}: {'.'.join(parents)} is a single value, not a section")


def _item(here: Any, part: str, override: str) -> Any:
    if isinstance(here, dict):
        return here.get(part)
    if isinstance(here, list) and part.isdigit() and int(part) < len(here):
        return here[int(part)]
    raise UserError(f"--set {override!r}: there is no {part!r} at that place of the config")


def _explain(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] == "extra_forbidden":
        *parents, unknown = fault["loc"]
        known = _known_keys(parents)
        near = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if fault["type"] == "missing":
        return f"{where!r} is missing"
    if "[key]" in fault["loc"]:
        return (
            f"{where!r} cannot name a folder: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    shown = "" if isinstance(given, dict | list | BaseModel) else f" (found {given!r})"
    return f"{where}: {message}{shown}" if where else message


def _known_keys(parents: list) -> list[str]:
    here: type[BaseModel] = Config
    sections: dict[str, type[BaseModel]] = {"models": Model, "arms": Arm, "thresholds": Threshold}
    for part in parents:
        if part in sections:
            here = sections[part]
        elif part in here.model_fields and isinstance(
            annotation := here.model_fields[part].annotation, type
        ):
            here = annotation
    return sorted(getattr(here, "model_fields", {}))
