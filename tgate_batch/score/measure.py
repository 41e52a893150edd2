"""One shard's pictures -> numbers: features for the distances, and one figure a picture.

The result is a Parquet file beside the pictures, one row a picture with the same ids; a file that
stands is kept, so scoring resumes as rendering does.
"""

import io
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np
import pyarrow as pa
from PIL import Image

from tgate_batch.metrics.broken import broken
from tgate_batch.metrics.entry import PictureMetric
from tgate_batch.metrics.features import Extractor
from tgate_batch.output import parquet
from tgate_batch.records import shard_name
from tgate_batch.storage import Folder

_COLUMNS = ["prompt_id", "image_number", "prompt", "status", "image"]
_PICTURES_AT_ONCE = 32

Key = tuple[str, int]  # prompt id, image number


def features_name(extractor: str, model: str, arm: str, shard: int) -> str:
    """The name of a shard's measurements inside the output folder."""
    return f"features/extractor={extractor}/model={model}/arm={arm}/{shard_name(shard)}.parquet"


def digest(
    shard_digest: str,
    extractor: Extractor | None,
    metrics: Sequence[PictureMetric],
    baseline: str | None,
) -> str:
    """What a measured file belongs to: its shard, and what was asked of it."""
    asked = [shard_digest, extractor and extractor.sha256, baseline]
    asked += [metric.name for metric in metrics]
    return sha256(json.dumps(asked).encode()).hexdigest()


def measure(
    folder: Folder,
    model: str,
    arm: str,
    shard: int,
    extractor: Extractor | None,
    metrics: Sequence[PictureMetric],
    baseline: str | None,
) -> pa.Table:
    """Columns prompt_id, image_number, broken (why, or null), features (float32), each metric.

    Without an extractor there are no features. Pictures without a finite figure have null there;
    rows that are not ok are left out. Raises OSError or ArrowException for a damaged shard.
    """
    others: dict[Key, Image.Image] = {}
    if baseline is not None and baseline != arm:
        others = dict(_pictures(folder, parquet.images_name(model, baseline, shard)))
    tables = [
        _measured(rows, extractor, metrics, others)
        for rows in _groups(folder, parquet.images_name(model, arm, shard))
    ]
    return pa.concat_tables(tables) if tables else _measured([], extractor, metrics, others)


_Row = tuple[Key, str, Image.Image]  # key, prompt, picture


def _groups(folder: Folder, name: str) -> Iterator[list[_Row]]:
    for batch in parquet.read_batches(folder, name, _COLUMNS, _PICTURES_AT_ONCE):
        rows = [row for row in batch.to_pylist() if row["status"] == "ok"]
        if rows:
            yield [
                ((row["prompt_id"], row["image_number"]), row["prompt"], _open(row)) for row in rows
            ]


def _pictures(folder: Folder, name: str) -> Iterator[tuple[Key, Image.Image]]:
    for rows in _groups(folder, name):
        for key, _, picture in rows:
            yield key, picture


def _open(row: dict) -> Image.Image:
    with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
        return picture.convert("RGB")


def _measured(
    rows: list[_Row],
    extractor: Extractor | None,
    metrics: Sequence[PictureMetric],
    others: dict[Key, Image.Image],
) -> pa.Table:
    pictures = [picture for _, _, picture in rows]
    columns = {
        "prompt_id": pa.array([key[0] for key, _, _ in rows], pa.string()),
        "image_number": pa.array([key[1] for key, _, _ in rows], pa.int32()),
        "broken": pa.array([broken(picture) for picture in pictures], pa.string()),
    }
    if extractor is not None:
        flat = pa.array(extractor(pictures).astype(np.float32).ravel())
        columns["features"] = pa.FixedSizeListArray.from_arrays(flat, extractor.dimensions)
    for metric in metrics:
        columns[metric.name] = _figures(metric, rows, others)
    return pa.table(columns)


def _figures(metric: PictureMetric, rows: list[_Row], others: dict[Key, Image.Image]) -> pa.Array:
    """One number a row, null where the metric has nothing to say or the baseline no picture."""
    chosen = [i for i, (key, _, _) in enumerate(rows) if not metric.needs_baseline or key in others]
    figures = np.full(len(rows), np.nan)
    if chosen:
        beside = [others[rows[i][0]] for i in chosen] if metric.needs_baseline else None
        figures[chosen] = metric([rows[i][2] for i in chosen], [rows[i][1] for i in chosen], beside)
    return pa.array(figures, pa.float64(), mask=~np.isfinite(figures))
