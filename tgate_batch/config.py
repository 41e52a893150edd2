"""A run, as validated data: YAML in, frozen models out, unknown keys refused."""

import difflib
import math
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.gate.plan import DeepCache, GatePlan

# A name becomes a folder (`arm=<name>`): no separators, no leading dot, nothing to escape.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


# A module is imported by its name, never found by a path.
Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


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

    @model_validator(mode="after")
    def _at_most_max(self) -> "Workers":
        if self.max is not None and self.min > self.max:
            raise ValueError(
                f"min {self.min} is more than max {self.max}; give a max of at least {self.min}"
            )
        return self


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
    mark: bool = True  # XMP in every picture: made by a model (IPTC's digital source type)


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
    plugins: tuple[Module, ...] = ()  # modules with a FAMILY or a METRIC of one's own
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


_LARGEST = 256 << 10  # bytes of a config
_DEEPEST = 20  # levels of sections in a config
_MOST_VALUES = 20_000  # in a config, with every alias written out


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML config and lays ``a.b=value`` overrides over it.

    Raises UserError, naming the file and the field, for anything that cannot be run.
    """
    source = f"config {one_line(path)}"
    try:
        data = _plain(_content(path, source))
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {_at_line(error)}") from None
    except _Refused as error:
        raise UserError(f"{source}: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{source} holds no keys; see configs/demo.yaml for an example")
    for override in overrides:
        _override(data, override)
    if fault := _not_plain(data):
        raise UserError(f"{source}: {fault}")
    return parse(data, source)


def _content(path: str | Path, source: str) -> str:
    """The text of a config's file, which is a small regular one."""
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise UserError(f"{source} is {kind}; give a YAML file")
        if found.st_size > _LARGEST:
            raise UserError(
                f"{source} has {found.st_size:,} bytes, and a config has at most "
                f"{_LARGEST:,}; is it another file?"
            )
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{source} cannot be read: {one_line(error.strerror or error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not YAML: not UTF-8 ({one_line(error)})") from None
    except UserError:
        raise
    except ValueError as error:  # NUL in the name
        raise UserError(f"{source} cannot be read: {one_line(error)}") from None


class _Refused(ValueError):
    """What YAML may say and a config may not."""


class _Loader(yaml.SafeLoader):
    """YAML of plain sections: no tags, aliases of few values, each key once and a text."""

    def __init__(self, text: str):
        super().__init__(text)
        self._values = 0  # so far, with every alias written out
        self._sizes: dict[str, int] = {}  # anchor -> its values

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"line {line}: the tag {shown(event.tag)} is not read; leave it out")
        before = self._values
        node = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent):
            self._values += 1
            self._sizes[event.anchor] = self._values - before
        elif event.anchor in self._sizes:
            self._values += self._sizes[event.anchor]
        else:
            raise _Refused(f"line {line}: the alias *{one_line(event.anchor, 60)} holds itself")
        if self._values > _MOST_VALUES:
            raise _Refused(f"line {line}: more than {_MOST_VALUES:,} values (aliases written out)")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            kind = key.tag.rpartition(":")[2]
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(f"{line}: a list or section stands as a key; a key is a word")
            if kind not in ("str", "merge"):
                raise _Refused(
                    f"{line}: the key {one_line(key.value, 60)} is read as {kind} by YAML, not as "
                    f'text; write it in quotes, "{one_line(key.value, 60)}"'
                )
            if key.value in seen:
                raise _Refused(f"{line}: the key {shown(key.value)} stands twice; keep one")
            seen.add(key.value)
        return node


def _plain(text: str) -> Any:
    """What a YAML text holds. Raises yaml.YAMLError, and _Refused for what no config needs."""
    try:
        return _Loader(text).get_single_data()
    except RecursionError:
        raise _Refused("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a number or date that Python does not hold
        if isinstance(error, _Refused):
            raise
        raise _Refused(f"a number or date cannot be read: {one_line(error, 60)}") from None


def _at_line(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return one_line(error)
    return f"line {mark.line + 1}: {one_line(problem)}"


def _not_plain(value: Any, where: str = "", depth: int = 0) -> str | None:
    """What stands in a config that no key of it takes, and where; None: nothing."""
    if depth > _DEEPEST:
        return f"{one_line(where, 60)}: it is nested too deeply"
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            place = f"{where}.{key}" if where else str(key)
            if fault := _not_text(str(key), where) or _not_plain(item, place, depth + 1):
                return fault
        return None
    if isinstance(value, str):
        return _not_text(value, where)
    if isinstance(value, bool | None):
        return None
    if isinstance(value, int | float):
        usable = math.isfinite(value) and abs(value) < 2**63
        return None if usable else f"{one_line(where)}: {shown(value)} is no number of use here"
    return f"{one_line(where)}: a {type(value).__name__} is no value here; write it in quotes"


def _not_text(value: str, where: str) -> str | None:
    if "\0" in value:
        return f"{one_line(where)}: a text with a NUL character; remove it"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{one_line(where)}: a text with half of a surrogate pair; remove it"
    return None


def parse(data: dict, source: str = "config") -> Config:
    """Validates plain data; raises UserError with the first fault found, in one line."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def _override(data: dict, override: str) -> None:
    key, found, text = override.partition("=")
    given = f"--set {shown(override)}"
    if not found or not key.strip():
        raise UserError(f"{given} is not of the form a.b=value")
    try:
        value = _plain(text)
    except yaml.YAMLError:
        value = text
    except _Refused as error:
        raise UserError(f"{given}: {error}") from None
    *parents, last = key.strip().split(".")
    here: Any = data
    for depth, part in enumerate(parents):
        following = _item(here, part, given)
        if following is None:
            following = {}
            _put(here, part, following)
        if isinstance(following, str) and parents[:depth] == ["models"]:
            following = {"name": following}
            _put(here, part, following)
        here = following
    if not isinstance(here, dict | list):
        where = one_line(".".join(parents))
        raise UserError(f"{given}: {where} is a single value, not a section")
    if isinstance(here, list):
        _item(here, last, given)
    _put(here, last, value)


def _item(here: Any, part: str, given: str) -> Any:
    if isinstance(here, dict):
        return here.get(part)
    if isinstance(here, list) and part.isdecimal() and len(part) < 6 and int(part) < len(here):
        return here[int(part)]
    raise UserError(f"{given}: there is no {shown(part)} at that place of the config")


def _put(here: Any, part: str, value: Any) -> None:
    here[int(part) if isinstance(here, list) else part] = value


def _explain(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = one_line(".".join(str(part) for part in fault["loc"] if part != "[key]"))
    if fault["type"] == "extra_forbidden":
        *parents, unknown = fault["loc"]
        known = _known_keys(parents)
        near = difflib.get_close_matches(str(unknown)[:100], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if fault["type"] == "missing":
        return f"{where!r} is missing"
    if "[key]" in fault["loc"]:
        return (
            f"{where!r} cannot name a folder: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    message = one_line(fault["msg"].removeprefix("Value error, "))
    given = fault.get("input")
    found = "" if isinstance(given, dict | list | BaseModel) else f" (found {shown(given)})"
    return f"{where}: {message}{found}" if where else message


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
