"""The records of a run (Prompt, Shard, ImageRecord, ShardResult) and the Arrow schema of rows."""

import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from typing import Any, NamedTuple

import pyarrow as pa

from tgate_batch.errors import reason_of
from tgate_batch.storage import without_credentials


class BatchKey(NamedTuple):
    """The settings that rows must share to be in one batch; None for the run's setting.

    ``guidance_scale`` is set only if rows with different scales cannot share a batch.
    """

    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guided: bool | None = None
    guidance_scale: float | None = None
    strength: float | None = None  # of image-to-image rows

    def __str__(self) -> str:
        settings = self._asdict() | {"guided": None}
        return ", ".join(f"{key} {value:g}" for key, value in settings.items() if value is not None)


AS_OTHERS = BatchKey()


class RowSettings(NamedTuple):
    """The settings in a row of the prompt set; None for the run's setting.

    ``strength`` is that of an image-to-image row; None if the row starts from noise alone.
    """

    negative_prompt: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    height: int | None = None  # pixels
    width: int | None = None  # pixels
    steps: int | None = None
    strength: float | None = None  # above 0, at most 1

    def batch_key(self, apart: bool = False) -> BatchKey:
        """Returns the row's batch key; ``apart``: rows with different scales share no batch."""
        scale = self.guidance_scale
        guided = None if scale is None else scale > 1
        size = self.height, self.width
        return BatchKey(*size, self.steps, guided, scale if apart else None, self.strength)


AS_THE_RUN = RowSettings()


class Prompt(NamedTuple):  # a dataclass takes twice as long to make, and there are millions
    """One row of the prompt set: a stable unique id and the text to render.

    ``image``: the encoded input image of a row that has one. ``category`` does not affect the
    image: figures may be broken down by it. ``source_row`` is the row's index in the whole set,
    from 0. ``extra_columns``: further columns for the output, as JSON.

    Example::

        Prompt("42", "a red fox", overrides=RowSettings(seed=7))
    """

    id: str
    text: str
    image: bytes | None = None
    category: str | None = None
    overrides: RowSettings = AS_THE_RUN
    source_row: int = 0
    extra_columns: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, retry and resume: prompts with one batch key; ``index`` counts from 0."""

    index: int
    prompts: tuple[Prompt, ...]

    @property
    def name(self) -> str:
        return f"shard-{self.index:05d}"

    @property
    def digest(self) -> str:
        """SHA-256 of the rows, which detects a changed prompt file.

        A row's category and its position in the set are not included.
        """
        digest = sha256()
        for prompt in self.prompts:
            for part in (prompt.id.encode(), prompt.text.encode(), prompt.image or b""):
                digest.update(len(part).to_bytes(8, "big") + part)
            if prompt.overrides != AS_THE_RUN or prompt.extra_columns is not None:
                # Older digests had no strength.
                overrides = prompt.overrides[: -1 if prompt.overrides.strength is None else None]
                part = json.dumps([*overrides, prompt.extra_columns]).encode()
                digest.update((len(part) | _HAS_SETTINGS).to_bytes(8, "big") + part)
        return digest.hexdigest()


_HAS_SETTINGS = 1 << 63  # marks a row's settings; no other part of a row has this length


def image_seed(
    run_seed: int, prompt_id: str, image_number: int, row_seed: int | None = None
) -> int:
    """Returns the 63-bit seed of one image, from the run's seed, prompt id and image number.

    It does not depend on arm, shard, worker or batch, so arms are paired image by image.
    ``row_seed`` is the seed in the prompt's row, if any: image 0 has that seed, and the seeds of
    the others are derived from it.

    Example::

        image_seed(0, "42", 1) != image_seed(0, "42", 0)
    """
    if row_seed is not None and image_number == 0:
        return row_seed
    origin = [run_seed, prompt_id] if row_seed is None else [row_seed]
    key = json.dumps([*origin, image_number]).encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1


def row_digest(
    model: str,
    arm: str,
    prompt_id: str,
    image_number: int,
    image: bytes | None,
    video: bytes | None,
) -> str:
    """Returns the SHA-256 of a row's image, video and key, which is unique to the row."""
    key = json.dumps([model, arm, prompt_id, image_number]).encode()
    digest = sha256(len(key).to_bytes(8, "big") + key)
    for content in (image, video):
        digest.update((0 if content is None else len(content) + 1).to_bytes(8, "big"))
        digest.update(content or b"")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image could not be rendered: exception class, message and traceback."""

    kind: str
    reason: str
    traceback: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Returns the failure of an exception: no credentials, and the traceback's end."""
        text = "".join(traceback.format_exception(error))
        kind, message = type(error).__name__, reason_of(error, None)
        line = kind if message == kind else f"{kind}: {message}"[:500]
        return cls(kind, without_credentials(line), without_credentials(text[-_TRACEBACK:]))


_TRACEBACK = 8000  # characters


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row: exactly one per (model, arm, prompt id, image number).

    A file contains the rows of one model and one arm; writing it adds the columns ``model``,
    ``arm`` and ``digest`` (:func:`row_digest`).

    ``batch_seconds`` is the wall time of the image's whole batch (denoising and decoding),
    ``denoise_seconds`` and ``decode_seconds`` its parts, ``encode_seconds`` the time to compress
    this image. ``warm_up`` marks a worker's first batch of an arm, which throughput excludes.
    ``memory`` describes how a batch was split that did not fit in memory. If ``status`` is "error",
    ``image`` is None, and ``error``, ``error_kind`` and ``error_traceback`` have the message, the
    exception class and the traceback. ``negative_prompt``, ``guidance_scale``, ``steps`` and
    ``strength`` (None if it starts from noise alone) are the image's settings. ``place`` is the
    prompt's position in the set, from 0; ``kept`` has further columns of the set, as JSON.
    """

    prompt_id: str
    image_number: int
    prompt: str
    seed: int
    status: str
    error: str | None = None
    image: bytes | None = None
    video: bytes | None = None
    width: int | None = None
    height: int | None = None
    batch: str | None = None
    batch_size: int | None = None
    batch_seconds: float | None = None
    denoise_seconds: float | None = None
    decode_seconds: float | None = None
    encode_seconds: float | None = None
    warm_up: bool | None = None
    worker: str | None = None
    memory: str | None = None
    error_kind: str | None = None
    error_traceback: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    place: int | None = None
    kept: str | None = None
    strength: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ImageRecord":
        """Returns the record of a stored row; columns that the row lacks are None."""
        values: dict[str, Any] = {key: row.get(key) for key in cls.__dataclass_fields__}
        image = values["image"]
        return cls(**values | {"image": None if image is None else image["bytes"]})

    def row(self) -> dict:
        """Returns the record as a row of :data:`SCHEMA`, without the columns that its file adds."""
        row = asdict(self)
        row["image"] = None if self.image is None else {"bytes": self.image, "path": None}
        return row


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """A progress update from a worker: this many more images of a shard are rendered."""

    model: str
    arm: str
    shard: int
    pictures: int


class Cut(NamedTuple):
    """Ids of the prompts whose text, or whose negative prompt, the text encoder truncates."""

    prompts: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()


_NONE_CUT = Cut()


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A worker's result for one (model, arm, shard); image data is never sent to the driver.

    ``first_error``: the message of the first error. ``cut``: the shard's truncated prompts.
    ``invariant``: True if an image of a padded batch has the same bits at every position, on this
    device; None if it is not known.
    """

    model: str
    arm: str
    shard: int
    images: int
    errors: int
    seconds: float  # device time: the sum of batch_seconds
    device: str
    host: str = ""
    first_error: str | None = None
    cut: Cut = _NONE_CUT
    invariant: bool | None = None


_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "binary": pa.binary(),
    "Image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
}


def _split(columns: str) -> dict[str, str]:
    return {name: kind for name, _, kind in (one.partition(":") for one in columns.split())}


def schema_of(columns: str) -> pa.Schema:
    """Returns the schema of columns given as text.

    Example::

        schema_of("seed:int64 steps:int32")
    """
    return pa.schema([(name, _TYPES[kind]) for name, kind in _split(columns).items()])


_COLUMNS = _split(  # in the file's order; add a new one before `digest`
    """
    model:string arm:string prompt_id:string image_number:int32 prompt:string seed:int64
    status:string error:string image:Image video:binary width:int32 height:int32
    batch:string batch_size:int32 batch_seconds:float64 denoise_seconds:float64
    decode_seconds:float64 encode_seconds:float64 warm_up:bool worker:string memory:string
    error_kind:string error_traceback:string negative_prompt:string guidance_scale:float64
    steps:int32 place:int64 kept:string strength:float64 digest:string
    """
)


def _schema(*without: str) -> pa.Schema:
    # Hugging Face `datasets` reads its features from this key, so that it decodes `image` itself.
    columns = {name: kind for name, kind in _COLUMNS.items() if name not in without}
    features = {
        name: {"_type": "Image"} if kind == "Image" else {"dtype": kind, "_type": "Value"}
        for name, kind in columns.items()
    }
    return pa.schema(
        [(name, _TYPES[kind]) for name, kind in columns.items()],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


SCHEMA = _schema()
BEFORE_DIGEST = _schema("digest")  # of files written before rows had a digest
BEFORE_STRENGTH = _schema("digest", "strength")
