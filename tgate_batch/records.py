"""The nouns of a run: Prompt, Shard, ImageRecord, Receipt, and the one Arrow schema of the rows."""

import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from typing import Any, NamedTuple

import pyarrow as pa

from tgate_batch.storage import without_credentials


class BatchKey(NamedTuple):
    """The settings that rows must share to be in one batch; None: the run's setting.

    ``guidance_scale``: only where rows of differing guidance cannot share a batch.
    """

    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guided: bool | None = None
    guidance_scale: float | None = None
    strength: float | None = None  # of rows that begin with a picture

    def __str__(self) -> str:
        asked = self._asdict() | {"guided": None}
        return ", ".join(f"{key} {value:g}" for key, value in asked.items() if value is not None)


AS_OTHERS = BatchKey()


class RowSettings(NamedTuple):
    """The overrides in a row of the prompt set; None: the run's setting.

    ``strength``: of a row that begins with its picture (image-to-image); None: from noise alone.
    """

    negative_prompt: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    height: int | None = None  # pixels
    width: int | None = None  # pixels
    steps: int | None = None
    strength: float | None = None  # above 0, at most 1

    def batch_key(self, apart: bool = False) -> BatchKey:
        """``apart``: rows of differing guidance do not share batches."""
        scale = self.guidance_scale
        guided = None if scale is None else scale > 1
        size = self.height, self.width
        return BatchKey(*size, self.steps, guided, scale if apart else None, self.strength)


AS_THE_RUN = RowSettings()


class Prompt(NamedTuple):  # a dataclass takes twice as long to make, and there are millions
    """One row of the prompt set: a stable unique id and the text to render.

    ``category`` does not affect the image: figures may be broken down by it. ``source_row`` is
    the row's index in the whole set, from 0. ``extra_columns``: further columns for the output,
    as JSON.
    """

    id: str
    text: str
    image: bytes | None = None  # the picture that it begins with
    category: str | None = None
    overrides: RowSettings = AS_THE_RUN
    source_row: int = 0
    extra_columns: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, retry and resume: consecutive prompts, numbered from 0."""

    index: int
    prompts: tuple[Prompt, ...]

    @property
    def name(self) -> str:
        return f"shard-{self.index:05d}"

    @property
    def digest(self) -> str:
        """SHA-256 over all that rows say, so that a changed prompt file is noticed.

        Neither a row's category nor its place enters.
        """
        digest = sha256()
        for prompt in self.prompts:
            for part in (prompt.id.encode(), prompt.text.encode(), prompt.image or b""):
                digest.update(len(part).to_bytes(8, "big") + part)
            if prompt.overrides != AS_THE_RUN or prompt.extra_columns is not None:
                overrides = (
                    prompt.overrides
                    if prompt.overrides.strength is not None
                    else prompt.overrides[:-1]
                )
                part = json.dumps([*overrides, prompt.extra_columns]).encode()
                digest.update((len(part) | _OWN).to_bytes(8, "big") + part)
        return digest.hexdigest()


_OWN = 1 << 63  # tells a row's own settings from the parts that every row has


def image_seed(
    run_seed: int, prompt_id: str, image_number: int, row_seed: int | None = None
) -> int:
    """Returns the 63-bit seed of one image, from the run's seed, prompt id and image number.

    Neither arm, shard, worker nor batch enters, so arms are paired image by image.
    ``row_seed`` is the seed in the prompt's row, if any: image 0 has that seed, and the seeds of
    the others are derived from it.
    """
    if row_seed is not None and image_number == 0:
        return row_seed
    of = [run_seed, prompt_id] if row_seed is None else [row_seed]
    key = json.dumps([*of, image_number]).encode()
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
    whose = json.dumps([model, arm, prompt_id, image_number]).encode()
    digest = sha256(len(whose).to_bytes(8, "big") + whose)
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
        """What an exception says; no credentials, and of long texts the last part."""
        told = "".join(traceback.format_exception(error))
        kind = type(error).__name__
        line = without_credentials(f"{kind}: {' '.join(str(error).split())}"[:500])
        return cls(kind, line, without_credentials(told[-_TRACEBACK:]))


_TRACEBACK = 8000  # characters


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row: exactly one per (model, arm, prompt id, image number).

    A file holds the rows of one model and one arm, and adds these two columns and ``digest``
    (:func:`row_digest`) itself.

    ``batch_seconds`` is the wall time of the whole batch this picture was made in (denoising and
    decoding), ``denoise_seconds`` and ``decode_seconds`` its parts, ``encode_seconds`` the time
    this one picture took to compress. ``warm_up`` marks a worker's first batch of an arm, which
    throughput leaves out. ``memory`` says how the batch was cut where the whole one did not fit.
    ``image`` is None where ``status`` is "error"; ``error`` then says why in a line, and
    ``error_kind`` and ``error_traceback`` of what kind it was and where it was raised.
    ``negative_prompt``, ``guidance_scale``, ``steps`` and ``strength`` (None: from noise alone) are
    what the picture was drawn with, ``place`` is its prompt's in the set, from 0, and ``kept``
    further columns of the set, as JSON.
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
        """The record that ``row`` gave; a row that lacks later columns has None there."""
        known: dict[str, Any] = {key: row.get(key) for key in cls.__dataclass_fields__}
        picture = known["image"]
        return cls(**known | {"image": None if picture is None else picture["bytes"]})

    def row(self) -> dict:
        """The record as a row of :data:`SCHEMA`, but for the columns that its file adds."""
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
    """Ids of prompts that a text encoder truncates, and of those whose negative prompt it does."""

    prompts: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()


_NONE_CUT = Cut()


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A worker's result for one (model, arm, shard); image data is never sent to the driver.

    ``why``: of the first error, its line. ``cut``: of the shard's prompts. ``invariant``: whether a
    padded batch gives a picture the same bits wherever it stands, on the device; None: not known.
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


_FIELDS: list[tuple[str, pa.DataType, dict]] = [
    ("model", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("arm", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("prompt_id", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("image_number", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("prompt", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("seed", pa.int64(), {"dtype": "int64", "_type": "Value"}),
    ("status", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("error", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"}),
    ("video", pa.binary(), {"dtype": "binary", "_type": "Value"}),
    ("width", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("height", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("batch", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("batch_size", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("batch_seconds", pa.float64(), {"dtype": "float64", "_type": "Value"}),
    ("denoise_seconds", pa.float64(), {"dtype": "float64", "_type": "Value"}),
    ("decode_seconds", pa.float64(), {"dtype": "float64", "_type": "Value"}),
    ("encode_seconds", pa.float64(), {"dtype": "float64", "_type": "Value"}),
    ("warm_up", pa.bool_(), {"dtype": "bool", "_type": "Value"}),
    ("worker", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("memory", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("error_kind", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("error_traceback", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("negative_prompt", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("guidance_scale", pa.float64(), {"dtype": "float64", "_type": "Value"}),
    ("steps", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("place", pa.int64(), {"dtype": "int64", "_type": "Value"}),
    ("kept", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("strength", pa.float64(), {"dtype": "float64", "_type": "Value"}),
    ("digest", pa.string(), {"dtype": "string", "_type": "Value"}),
]


def _schema(fields: list[tuple[str, pa.DataType, dict]]) -> pa.Schema:
    # Hugging Face `datasets` reads its features from this key, and so decodes `image` by itself.
    features = {"info": {"features": {name: feature for name, _, feature in fields}}}
    return pa.schema(
        [(name, kind) for name, kind, _ in fields], metadata={"huggingface": json.dumps(features)}
    )


SCHEMA = _schema(_FIELDS)
BEFORE_DIGEST = _schema(_FIELDS[:-1])  # of files from before rows had one
BEFORE_STRENGTH = _schema(_FIELDS[:-2])
