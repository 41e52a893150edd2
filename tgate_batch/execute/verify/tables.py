"""Whether one file of an output is what it should be: its pages, its rows, what it was made of.

Each check returns reasons, in words; none means that the file is sound. Parquet files are read one
row group at a time, every column of it, and so every page's checksum is compared.
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
_BROKEN = "its rows or its footer are not those that its digest was made of"


@dataclass(frozen=True)
class ExpectedRow:
    """What measurements have to agree with."""

    key: ImageKey
    status: str
    error: str | None


@dataclass
class ImageTable:
    """What a file of pictures holds; ``rows`` is None where it is not sound.

    ``digests``: whether its rows have digests; files of format 4 have none.
    """

    reasons: list[str]
    rows: list[ExpectedRow] | None = None
    decoded: int = 0
    digests: bool = True


@dataclass(frozen=True)
class Expected:
    """Whose pictures a file is to hold. ``shard`` is None where its prompts are damaged."""

    model: str
    arm: str
    settings: Settings
    identity: str
    shard: Shard | None

    def keys(self) -> list[ImageKey] | None:
        """Every picture of the shard, in order."""
        if self.shard is None:
            return None
        each = range(int(self.settings["sampling.images_per_prompt"] or 0))
        return [(prompt.id, number) for prompt in self.shard.prompts for number in each]


def check_images(folder: Folder, name: str, expected: Expected) -> ImageTable:
    """Checks a file of pictures; decodes each of them."""
    found = ImageTable([])
    rows: list[ExpectedRow] = []

    def check() -> list[str]:
        reasons: list[str] = []
        for table in _groups(folder, name, expected.identity, _schema_of_pictures, reasons):
            found.digests = "digest" in table.schema.names
            for row in table.to_pylist():
                reasons += _of_row(row, expected)
                found.decoded += row["image"] is not None
                key = row["prompt_id"], row["image_number"]
                rows.append(ExpectedRow(key, row["status"], row["error"]))
        if reasons and not rows:
            return reasons  # of the footer
        return _of_keys([row.key for row in rows], expected.keys()) + reasons

    found.reasons = guarded(check)
    found.rows = None if found.reasons else rows
    return found


def check_measurement(
    folder: Folder,
    name: str,
    identity: str,
    rows: list[ExpectedRow] | None,
    broken: set[ImageKey] | None,
) -> tuple[list[str], set[ImageKey]]:
    """Checks a file of features or figures, and what ``rows`` measures.

    ``rows`` are the pictures'; ``broken`` are those without features. None: not known. Returns the
    broken ones too, where the file says them.
    """
    role = layout.role_of(name)
    assert role is not None
    says_broken: set[ImageKey] = set()
    by_rows = role.kind == "measured" and role.of == layout.ROWS

    def check() -> list[str]:
        reasons: list[str] = []
        found: list[ExpectedRow] = []
        for table in _groups(folder, name, identity, _schema_of_measurement(role), reasons):
            ids, numbers = (table[key].to_pylist() for key in ("prompt_id", "image_number"))
            keys = list(zip(ids, numbers, strict=True))
            if by_rows:
                words = (table[key].to_pylist() for key in ("status", "error", "broken"))
                for key, status, error, why in zip(keys, *words, strict=True):
                    found.append(ExpectedRow(key, status, error))
                    if why is not None:
                        says_broken.add(key)
            else:
                found += [ExpectedRow(key, "ok", None) for key in keys]
            if role.kind == "features" and not np.isfinite(_values(table["features"])).all():
                reasons.append("it has features that are not finite")
        if rows is None or (reasons and not found):
            return reasons
        return reasons + _of_measured(role, found, rows, broken)

    return guarded(check), says_broken


def _of_measured(
    role: layout.FileRole,
    found: list[ExpectedRow],
    rows: list[ExpectedRow],
    broken: set[ImageKey] | None,
) -> list[str]:
    """Whether a measurement has the rows that it is to have beside the pictures' ``rows``."""
    if role.kind == "measured" and role.of == layout.ROWS:
        return [] if found == rows else ["its rows are not those of the pictures"]
    wanted = [row.key for row in rows if row.status == "ok"]
    if role.kind == "features":
        if broken is None:
            return []
        wanted = [key for key in wanted if key not in broken]
    return _of_keys([row.key for row in found], wanted)


def check_pages(folder: Folder, name: str) -> list[str]:
    """Checks that every page of a Parquet file is as it was written."""

    def check() -> list[str]:
        for _ in _groups(folder, name):
            pass
        return []

    return guarded(check)


def _groups(
    folder: Folder,
    name: str,
    identity: str | None = None,
    schema: Callable[[pq.ParquetFile], list[str]] | None = None,
    reasons: list[str] | None = None,
) -> Iterator[pa.Table]:
    """The row groups of a file; none where its footer gives a reason, which joins ``reasons``.

    After the last one the seal is compared: a broken one joins them too, or raises ValueError.
    """
    with parquet.open_table(folder, name) as file:
        if identity is not None and reasons is not None:
            found = (file.metadata.metadata or {}).get(IDENTITY_KEY)
            if found != identity.encode():
                reasons.append("it was made of other settings or prompts than its name says")
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
                raise ValueError(_BROKEN)
            reasons.append(_BROKEN)


def _differs(found: pa.Schema, wanted: pa.Schema) -> list[str]:
    kinds = {one.name: one.type for one in found}
    reasons = [f"it has no column {one.name}" for one in wanted if one.name not in kinds]
    reasons += [f"it has a column {name} too many" for name in kinds if name not in wanted.names]
    reasons += [
        f"its column {one.name} is {kinds[one.name]}, not {one.type}"
        for one in wanted
        if kinds.get(one.name, one.type) != one.type
    ]
    if not reasons and found.names != wanted.names:
        reasons.append("its columns are in another order")
    return reasons


def _schema_of_pictures(file: pq.ParquetFile) -> list[str]:
    found = file.schema_arrow
    known = {one.names[-1]: one for one in (SCHEMA, BEFORE_DIGEST, BEFORE_STRENGTH)}
    wanted = known.get(found.names[-1] if found.names else "", SCHEMA)
    reasons = _differs(found, wanted)
    footer = parquet.footer(file)
    for key, value in (wanted.metadata or {}).items():
        if footer.get(key.decode()) != value.decode():
            reasons.append(f"its footer does not say {key.decode()} as it is written")
    return reasons + _not_json(footer, _FOOTER)


def _not_json(footer: Mapping[str, str], keys: tuple[str, ...]) -> list[str]:
    reasons = []
    for key in keys:
        try:
            json.loads(footer[key])
        except (KeyError, ValueError):
            reasons.append(f"its footer does not say {key}")
    return reasons


def _schema_of_measurement(role: layout.FileRole) -> Callable[[pq.ParquetFile], list[str]]:
    def check(file: pq.ParquetFile) -> list[str]:
        schema = file.schema_arrow
        if role.kind == "features":
            kind = schema.field("features").type if "features" in schema.names else None
            if kind is None or not pa.types.is_fixed_size_list(kind):
                return ["it has no column features of lists of one length"]
            kind = pa.list_(pa.float32(), kind.list_size)
            return _differs(schema, pa.schema([*list(FIGURES_SCHEMA)[:2], ("features", kind)]))
        if role.of == layout.ROWS:
            footer = _not_json(parquet.footer(file), (*MACS, "made_by"))
            return _differs(schema, ROWS_SCHEMA) + footer
        return _differs(schema, FIGURES_SCHEMA)

    return check


def _values(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _of_keys(found: list[ImageKey], wanted: list[ImageKey] | None) -> list[str]:
    if wanted is None or found == wanted:
        return []
    counts, known = Counter(found), set(wanted)
    reasons = [
        *(f"row {_named(key)} is missing" for key in wanted if key not in counts),
        *(f"row {_named(key)} stands {n} times" for key, n in counts.items() if n > 1),
        *(f"row {_named(key)} is of no prompt of its shard" for key in counts if key not in known),
    ]
    return reasons or ["its rows are not in the prompts' order"]


def _named(key: ImageKey) -> str:
    return f"{key[0]}/{key[1]}"


def _of_row(row: Mapping[str, Any], expected: Expected) -> list[str]:
    key, reasons = (row["prompt_id"], row["image_number"]), []
    if (row["model"], row["arm"]) != (expected.model, expected.arm):
        reasons.append(f"is of model {row['model']} and arm {row['arm']}")
    if expected.shard is not None:
        seeds = {prompt.id: prompt.overrides.seed for prompt in expected.shard.prompts}
        seed = image_seed(int(expected.settings["sampling.seed"] or 0), *key, seeds.get(key[0]))
        if row["seed"] != seed:
            reasons.append("has another seed than the run, its prompt and number give")
        texts = {prompt.id: prompt.text for prompt in expected.shard.prompts}
        if texts.get(key[0], row["prompt"]) != row["prompt"]:
            reasons.append("has another prompt than the frozen one")
    if row["status"] == "ok":
        reasons += _of_picture(row, str(expected.settings["images.format"]))
    elif row["status"] == "error":
        if not row["error"]:
            reasons.append("has failed and does not say why")
        if row["image"] is not None or row["video"] is not None:
            reasons.append("has failed and has a picture")
    else:
        reasons.append(f"has status {row['status']!r}, which is neither ok nor error")
    if "digest" in row:
        image = (row["image"] or {}).get("bytes")
        if row["digest"] != row_digest(row["model"], row["arm"], *key, image, row["video"]):
            reasons.append("has an image or video that is not the one its digest was made of")
    return [f"row {_named(key)} {reason}" for reason in reasons]


def _of_picture(row: Mapping[str, Any], format_: str) -> list[str]:
    content = (row["image"] or {}).get("bytes")
    if row["error"] is not None:
        return ["is ok and has an error"]
    if not content:
        return ["is ok and has no picture"]
    try:
        picture = open_image(content)
    except UserError as error:
        return [f"has a picture that cannot be decoded: {error}"]
    size, kind = picture.size, str(picture.format).lower()
    if size != (row["width"], row["height"]):
        said = f"{row['width']}x{row['height']}"
        return [f"has a picture of {size[0]}x{size[1]} and says {said}"]
    return [] if kind == format_ else [f"has a picture in {kind}, not in {format_}"]
