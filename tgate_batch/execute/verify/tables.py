"""Checks of one Parquet file of an output: its pages, rows, schema and identity.

Each check returns reasons; none means that the file is intact. Files are read one row group at a
time with every column, which compares every page's checksum.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.errors import UserError
from tgate_batch.execute.verify.findings import guarded
from tgate_batch.output import layout, parquet
from tgate_batch.output.layout import IDENTITY_KEY, Settings
from tgate_batch.output.seal import TableSeal
from tgate_batch.records import (
    BEFORE_DIGEST,
    BEFORE_STRENGTH,
    SCHEMA,
    Shard,
    image_seed,
    row_digest,
)
from tgate_batch.score.measure import FIGURES_SCHEMA, MACS, ROWS_SCHEMA, ImageKey
from tgate_batch.storage import Folder
from tgate_batch.storage.images import open_image

_FOOTER = ("made_by", "settings", *MACS)
BROKEN = "its rows or its footer do not match its digest"


@dataclass(frozen=True)
class ExpectedRow:
    """A row that the measurements must agree with."""

    key: ImageKey
    status: str
    error: str | None


@dataclass
class ImageTable:
    """The check of a file of images; ``rows`` is None if it has faults.

    ``digests``: True if its rows have digests; files of format 4 have none.
    """

    reasons: list[str]
    rows: list[ExpectedRow] | None = None
    decoded: int = 0
    digests: bool = True


@dataclass(frozen=True)
class Expected:
    """What a file of images must contain; ``shard`` is None if its prompts are damaged."""

    model: str
    arm: str
    settings: Settings
    identity: str
    shard: Shard | None

    def keys(self) -> list[ImageKey] | None:
        """Returns the key of every image of the shard, in order; None if they are not known."""
        if self.shard is None:
            return None
        each = range(int(self.settings["sampling.images_per_prompt"] or 0))
        return [(prompt.id, number) for prompt in self.shard.prompts for number in each]


def check_images(folder: Folder, name: str, expected: Expected) -> ImageTable:
    """Checks a file of images; decodes each of them."""
    result = ImageTable([])
    rows: list[ExpectedRow] = []

    @guarded
    def check() -> list[str]:
        reasons: list[str] = []
        for table in _groups(folder, name, expected.identity, _check_image_schema, reasons):
            result.digests = "digest" in table.schema.names
            for row in table.to_pylist():
                reasons += _check_row(row, expected)
                result.decoded += row["image"] is not None
                key = row["prompt_id"], row["image_number"]
                rows.append(ExpectedRow(key, row["status"], row["error"]))
        if reasons and not rows:
            return reasons  # about the footer
        return _check_keys([row.key for row in rows], expected.keys()) + reasons

    result.reasons = check()
    result.rows = None if result.reasons else rows
    return result


def check_measurement(
    folder: Folder,
    name: str,
    identity: str,
    rows: list[ExpectedRow] | None,
    broken: set[ImageKey] | None,
) -> tuple[list[str], set[ImageKey]]:
    """Checks a file of features or figures against the rows of the images.

    ``rows``: the images' rows; ``broken``: the images without features; both None if not known.
    Returns the reasons and, from a measurement of rows, the images without features.
    """
    role = layout.role_of(name)
    assert role is not None
    broken_here: set[ImageKey] = set()
    by_rows = role.kind == "measured" and role.of == layout.ROWS

    @guarded
    def check() -> list[str]:
        reasons: list[str] = []
        measured: list[ExpectedRow] = []
        for table in _groups(folder, name, identity, _measurement_schema(role), reasons):
            ids, numbers = (table[key].to_pylist() for key in ("prompt_id", "image_number"))
            keys = list(zip(ids, numbers, strict=True))
            if by_rows:
                words = (table[key].to_pylist() for key in ("status", "error", "broken"))
                for key, status, error, why in zip(keys, *words, strict=True):
                    measured.append(ExpectedRow(key, status, error))
                    if why is not None:
                        broken_here.add(key)
            else:
                measured += [ExpectedRow(key, "ok", None) for key in keys]
            if role.kind == "features" and not np.isfinite(_values(table["features"])).all():
                reasons.append("it has features that are not finite")
        if rows is None or (reasons and not measured):
            return reasons
        return reasons + _compare_rows(role, measured, rows, broken)

    return check(), broken_here


def _compare_rows(
    role: layout.FileRole,
    measured: list[ExpectedRow],
    rows: list[ExpectedRow],
    broken: set[ImageKey] | None,
) -> list[str]:
    """Compares the rows of a measurement with those of the images."""
    if role.kind == "measured" and role.of == layout.ROWS:
        return [] if measured == rows else ["its rows are not those of the images"]
    wanted = [row.key for row in rows if row.status == "ok"]
    if role.kind == "features":
        if broken is None:
            return []
        wanted = [key for key in wanted if key not in broken]
    return _check_keys([row.key for row in measured], wanted)


@guarded
def check_pages(folder: Folder, name: str) -> list[str]:
    """Checks every page's checksum of a Parquet file, and its seal."""
    for _ in _groups(folder, name):
        pass
    return []


def _groups(
    folder: Folder,
    name: str,
    identity: str | None = None,
    schema: Callable[[pq.ParquetFile], list[str]] | None = None,
    reasons: list[str] | None = None,
) -> Iterator[pa.Table]:
    """Yields the row groups of a file; none if its footer gives a reason, added to ``reasons``.

    At the end the seal is compared: a broken one is added too, or raises ValueError.
    """
    with parquet.open_table(folder, name) as file:
        if identity is not None and reasons is not None:
            stored = (file.metadata.metadata or {}).get(IDENTITY_KEY)
            if stored != identity.encode():
                reasons.append("it was made with other settings or prompts than its name says")
        if schema is not None and reasons is not None:
            reasons += schema(file)
        if reasons:
            return
        seal = TableSeal(parquet.footer(file))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            seal.add(table)
            yield table
        if seal.is_broken():
            if reasons is None:
                raise ValueError(BROKEN)
            reasons.append(BROKEN)


def _differences(schema: pa.Schema, wanted: pa.Schema) -> list[str]:
    types = {one.name: one.type for one in schema}
    reasons = [f"it has no column {one.name}" for one in wanted if one.name not in types]
    reasons += [f"it has an unexpected column {name}" for name in types if name not in wanted.names]
    reasons += [
        f"its column {one.name} is {types[one.name]}, not {one.type}"
        for one in wanted
        if types.get(one.name, one.type) != one.type
    ]
    if not reasons and schema.names != wanted.names:
        reasons.append("its columns are in another order")
    return reasons


def _check_image_schema(file: pq.ParquetFile) -> list[str]:
    schema = file.schema_arrow
    known = {one.names[-1]: one for one in (SCHEMA, BEFORE_DIGEST, BEFORE_STRENGTH)}
    wanted = known.get(schema.names[-1] if schema.names else "", SCHEMA)
    reasons = _differences(schema, wanted)
    footer = parquet.footer(file)
    for key, value in (wanted.metadata or {}).items():
        if footer.get(key.decode()) != value.decode():
            reasons.append(f"its footer has another {key.decode()}")
    return reasons + _not_json(footer, _FOOTER)


def _not_json(footer: Mapping[str, str], keys: tuple[str, ...]) -> list[str]:
    reasons = []
    for key in keys:
        try:
            json.loads(footer[key])
        except (KeyError, ValueError):
            reasons.append(f"its footer has no {key}")
    return reasons


def _measurement_schema(role: layout.FileRole) -> Callable[[pq.ParquetFile], list[str]]:
    def check(file: pq.ParquetFile) -> list[str]:
        schema = file.schema_arrow
        if role.kind == "features":
            kind = schema.field("features").type if "features" in schema.names else None
            if kind is None or not pa.types.is_fixed_size_list(kind):
                return ["it has no column features of lists of one length"]
            kind = pa.list_(pa.float32(), kind.list_size)
            return _differences(schema, pa.schema([*list(FIGURES_SCHEMA)[:2], ("features", kind)]))
        if role.of == layout.ROWS:
            footer = _not_json(parquet.footer(file), (*MACS, "made_by"))
            return _differences(schema, ROWS_SCHEMA) + footer
        return _differences(schema, FIGURES_SCHEMA)

    return check


def _values(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _check_keys(keys: list[ImageKey], wanted: list[ImageKey] | None) -> list[str]:
    if wanted is None or keys == wanted:
        return []
    counts, known = Counter(keys), set(wanted)
    reasons = [
        *(f"row {_named(key)} is missing" for key in wanted if key not in counts),
        *(f"row {_named(key)} occurs {n} times" for key, n in counts.items() if n > 1),
        *(
            f"row {_named(key)} belongs to no prompt of its shard"
            for key in counts
            if key not in known
        ),
    ]
    return reasons or ["its rows are not in the order of the prompts"]


def _named(key: ImageKey) -> str:
    return f"{key[0]}/{key[1]}"


def _check_row(row: Mapping[str, Any], expected: Expected) -> list[str]:
    key, reasons = (row["prompt_id"], row["image_number"]), []
    if (row["model"], row["arm"]) != (expected.model, expected.arm):
        reasons.append(f"has model {row['model']} and arm {row['arm']}")
    if expected.shard is not None:
        seeds = {prompt.id: prompt.overrides.seed for prompt in expected.shard.prompts}
        seed = image_seed(int(expected.settings["sampling.seed"] or 0), *key, seeds.get(key[0]))
        if row["seed"] != seed:
            reasons.append("has another seed than follows from the run, its prompt and number")
        texts = {prompt.id: prompt.text for prompt in expected.shard.prompts}
        if texts.get(key[0], row["prompt"]) != row["prompt"]:
            reasons.append("has another prompt than the frozen one")
    if row["status"] == "ok":
        reasons += _check_image(row, str(expected.settings["images.format"]))
    elif row["status"] == "error":
        if not row["error"]:
            reasons.append("has failed, but has no error")
        if row["image"] is not None or row["video"] is not None:
            reasons.append("has failed, but has an image")
    else:
        reasons.append(f"has status {row['status']!r}, which is neither ok nor error")
    if "digest" in row:
        image = (row["image"] or {}).get("bytes")
        if row["digest"] != row_digest(row["model"], row["arm"], *key, image, row["video"]):
            reasons.append("has an image or video that does not match its digest")
    return [f"row {_named(key)} {reason}" for reason in reasons]


def _check_image(row: Mapping[str, Any], format_: str) -> list[str]:
    content = (row["image"] or {}).get("bytes")
    if row["error"] is not None:
        return ["is ok, but has an error"]
    if not content:
        return ["is ok, but has no image"]
    try:
        image = open_image(content)
    except UserError as error:
        return [f"has an image that cannot be decoded: {error}"]
    actual, stated = image.size, (row["width"], row["height"])
    if actual != stated:
        width, height = actual
        return [f"has an image of {width}x{height}, but states {stated[0]}x{stated[1]}"]
    actual_format = str(image.format).lower()
    return [] if actual_format == format_ else [f"has an image in {actual_format}, not {format_}"]
