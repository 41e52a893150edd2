"""The shapes of an output's JSON: each file, line and footer is validated when it is read.

An output may come from an untrusted source. A value of another type is an error of one line that
names the file, or a warning if the file only adds detail. Unknown keys are ignored, because a later
version may write them.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from tgate_batch import console
from tgate_batch.errors import UserError, one_line
from tgate_batch.output import layout, seal
from tgate_batch.render.codec import FORMATS
from tgate_batch.render.timing import BESIDE, ON_DEVICE
from tgate_batch.storage import Folder, map_concurrently


def _check_size(number: float) -> float:
    if abs(number) > 1e18 and not math.isnan(number):
        raise ValueError("is too large")
    return number


Whole = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, AfterValidator(_check_size)]
Positive = Annotated[float, Field(ge=0, le=1e18)]  # or 0
Scalar = str | Annotated[int, Field(gt=-(2**64), lt=2**64)] | float | bool | None


class Shape(BaseModel):
    """The keys that are read from a file. ``advice``: how to replace a file of another shape."""

    model_config = ConfigDict(strict=True, extra="allow")
    advice: ClassVar[str] = "restore it from a copy, or give another output"


class RunFile(Shape):
    """``run.json``; its config is validated as a config."""

    advice: ClassVar[str] = "write it again with tgate-batch render and the run's config"
    config: dict[str, Any]
    models: dict[str, Any] | None = None
    prompts: Whole | None = None
    shards: Whole | None = None


class LedgerFile(Shape):
    """``made_of.json``: a folder's name -> its settings, or null while its files are deleted."""

    folders: dict[str, dict[str, Scalar] | None]

    @model_validator(mode="after")
    def _are_folders_of_a_run(self) -> "LedgerFile":
        for name, entry in self.folders.items():
            role = layout.role_of_folder(name)
            if role is None and name != layout.PROMPTS:
                raise ValueError(f"{one_line(name, 100)} is not a folder of a run")
            if role is not None and role.kind == "images" and entry is not None:
                _check_images(name, entry)
        return self


def _check_images(name: str, entry: Mapping[str, Any]) -> None:
    image_format = entry.get("images.format", "webp")
    if not isinstance(image_format, str) or image_format not in FORMATS:
        raise ValueError(f"{name}: images.format is none of {', '.join(FORMATS)}")
    for key, most in (("sampling.images_per_prompt", 10_000), ("sampling.batch_size", 2**31)):
        number = entry.get(key, 1)
        if type(number) is not int or not 1 <= number <= most:
            raise ValueError(f"{name}: {key} is not a number from 1 to {most:,}")


class DamagedFile(RootModel[dict[str, str]]):
    """``damaged.json``: the name of a file in this output -> its damage."""

    model_config = ConfigDict(strict=True)
    advice: ClassVar[str] = "remove it with tgate-batch verify --repair"

    @model_validator(mode="after")
    def _are_files_of_a_run(self) -> "DamagedFile":
        for name in self.root:
            if layout.role_of(name) is None:
                raise ValueError(f"{one_line(name, 100)} is not a file of a run")
        return self


class SoFar(Shape):
    """The progress of an invocation, in its lock file."""

    id: str | None = None
    born: Number | None = None
    seconds: Positive | None = None
    workers: Whole | None = None


class ClaimFile(SoFar):
    """``claim.json``: the driver that owns the folder, and its progress."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    since: str
    processes: str | None = None
    token: str | None = None
    beats: Whole | None = None


class HistoryLine(Shape):
    """A line of ``history.jsonl``: the start or the end of an invocation."""

    event: str | None = None
    id: str | None = None
    command: list[str] | None = None
    versions: dict[str, str] | None = None
    device: str | None = None
    exit_code: int | None = None
    seconds: Positive | None = None
    workers: Whole | None = None
    gpus_each: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    cpus_each: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class _Search(Shape):
    id: str
    limits: dict[str, Number]
    chain: list[str]


class SearchesFile(Shape):
    """``find_plan/searches.json``: the searches whose plans were confirmed here, in order."""

    searches: list[_Search]


class WorkerFile(Shape):
    """``workers/<name>.json``: a worker's time per stage."""

    gpu: str | None
    joules: Positive | None
    counted: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    seconds: dict[str, Positive]

    @model_validator(mode="after")
    def _has_every_stage(self) -> "WorkerFile":
        if lacking := [one for one in (*ON_DEVICE, *BESIDE, "wall") if one not in self.seconds]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return self


class _Estimate(Shape):
    value: Number
    low: Number | None = None
    high: Number | None = None
    gained: Whole | None = None
    lost: Whole | None = None
    count: Whole | None = None
    pictures: Whole | None = None


class _Timed(Shape):
    images: Whole
    seconds: Positive


class _Spread(Shape):
    low: Number
    high: Number
    counts: list[Whole]


class Maker(Shape):
    """What rendered the images: package versions and device."""

    versions: dict[str, str]
    git: str | None = None
    device: str | None = None
    invariant: bool | None = None
    files: Whole = 1


class _Row(Shape):
    prompt_id: str
    image_number: Whole


class _FailedRow(_Row):
    error: str | None
    error_kind: str | None = None


class _BrokenRow(_Row):
    broken: str | None


class _ChangedRow(_Row):
    shard: Whole
    value: Number


class _Kind(Shape):
    kind: str
    rows: Whole
    error: str | None


class _Reference(Shape):
    name: str
    sha256: str
    count: Whole | None
    sample: Whole | None = None


class _Set(Shape):
    distance: Number | None = None
    distance_label: str | None = None
    distance_note: str | None = None
    distance_corrected: _Estimate | None = None
    distance_change: _Estimate | None = None
    kid: _Estimate | None = None
    kid_change: _Estimate | None = None
    precision: Number | None = None
    recall: Number | None = None
    reference: _Reference | None = None
    withheld: dict[str, str] | None = None


class _By(Shape):
    prompts: Whole
    change: dict[str, _Estimate | None] | None


class ScoresFile(_Set):
    """``scores/<model>/<arm>.json``."""

    advice: ClassVar[str] = "write it again with tgate-batch score"
    model: str
    arm: str
    images: Whole
    errors: Whole
    error_rows: list[_FailedRow]
    error_kinds: list[_Kind] | None = None
    broken: Whole
    broken_rows: list[_BrokenRow]
    prompts: Whole | None = None
    prompts_compared: Whole | None = None
    macs_per_image: Positive | None = None
    macs_per_image_with_attention: Positive | None
    made_by: list[Maker] = []
    images_per_second_per_worker: Positive | None
    images_per_second_interval: _Estimate | None = None
    speedup_interval: _Estimate | None = None
    batch_seconds_p50: Positive | None = None
    batch_seconds_p95: Positive | None = None
    device_seconds: Positive | None = None
    seconds_per_image: dict[str, Positive | None] | None = None
    paired: dict[str, Number | None] | None = None
    intervals: dict[str, _Estimate | None] | None = None
    change: dict[str, _Estimate | None] | None = None
    by: dict[str, _By] | None = None
    course: list[_Timed] | None = None
    by_worker: dict[str, _Timed] | None = None
    spread: dict[str, _Spread] | None = None
    most_changed: dict[str, list[_ChangedRow]] | None = None
    fid: Number | None = None
    fd: Number | None = None
    distances: dict[str, _Set] | None = None


class RowNotes(Shape):
    """The named rows and the makers of partial sums (``about`` in their ``.npz``)."""

    failed: list[_FailedRow]
    broken: list[_BrokenRow]
    made_by: list[Maker]
    macs: dict[str, dict[Annotated[str, Field(pattern=r"^\d{1,18}$")], Whole]]
    worst: dict[str, list[_ChangedRow]]


# One row per shard: its index, prompts, digest, file, row group, batch key and first row.
_Plans = TypeAdapter(
    list[
        tuple[
            Whole,
            Whole,
            str,
            Whole,
            Whole,
            Annotated[list[bool | Whole | Positive | None], Field(max_length=6)],
            Whole,
        ]
    ]
)

_Macs = TypeAdapter(Annotated[int, Field(strict=True, ge=0, lt=2**63)])


def parse_json(content: bytes | str) -> Any:
    """Returns the value of a JSON text; raises ValueError for invalid or deeply nested JSON."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_shape(content: Any, shape: type[BaseModel]) -> Any:
    """Returns plain data unchanged; raises ValueError, in one line, if it has another shape."""
    try:
        shape.model_validate(content)
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from None
    return content


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    where = one_line(".".join(map(str, fault["loc"])), 100)
    message = one_line(fault["msg"].removeprefix("Value error, "))
    return f"{where}: {message}" if where else message


def plans(text: str) -> list[Any]:
    """Returns the rows of a footer's plans; raises ValueError, in one line, for another shape."""
    try:
        return _Plans.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(f"its shard plans are unusable: {_first_fault(error)}") from None


def faults(content: Any, shape: type[BaseModel]) -> list[str]:
    """Returns one line with the first fault in the shape of plain data; none if there is none."""
    try:
        check_shape(content, shape)
    except ValueError as error:
        return [str(error)]
    return []


def read(folder: Folder, name: str, shape: type[BaseModel]) -> Any:
    """Returns a JSON file of an output as plain data, without its seal; None if it is missing.

    Raises UserError, naming the file, if it cannot be read or has another shape.
    """
    content = read_json(folder, name)
    if content is None:
        return None
    try:
        check_shape(content, shape)
    except ValueError as error:
        advice = getattr(shape, "advice", Shape.advice)
        raise UserError(
            f"output {folder}: {one_line(name)} cannot be used: {error}. Fix: {advice}"
        ) from None
    if isinstance(content, dict):
        content.pop(seal.KEY, None)
    return content


def read_json(folder: Folder, name: str) -> Any:
    """Returns a JSON file of an output, of any shape; None if it is missing.

    Raises UserError if it cannot be read.
    """
    try:
        content = folder.get(name)
        return None if content is None else parse_json(content)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"output {folder} has a {name} that cannot be read ({one_line(error)}). Fix: "
            f"{Shape.advice}"
        ) from None


def of_rows(footer: Mapping[str, str], macs: Iterable[str]) -> dict[str, Any]:
    """Returns ``made_by`` and the keys ``macs`` of a footer, as far as it has them.

    Raises ValueError if one has another shape.
    """
    values = {key: parse_json(footer[key]) for key in (*macs, "made_by") if key in footer}
    if "made_by" in values:
        check_shape(values["made_by"], Maker)
    for key in macs:
        if values.get(key) is not None:
            _Macs.validate_python(values[key])
    return values


def read_workers(folder: Folder) -> list[dict[str, Any]]:
    """Returns the contents of the worker files; warns of a file of another shape and skips it."""

    def worker(name: str) -> dict[str, Any] | None:
        try:
            return read(folder, name, WorkerFile)
        except UserError as error:
            fault = str(error).partition(". Fix: ")[0]
            console.warning(f"{fault}; its times and its energy are left out of the report")
            return None

    workers = map_concurrently(worker, folder.names(layout.WORKERS, ".json"))
    return [one for one in workers if one is not None]
