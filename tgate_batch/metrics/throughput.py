"""Images a second and batch latency, derived from the times that rows carry."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Throughput:
    """One arm's measured batches, each worker's warm-up batch left out.

    Seconds are device time of whole batches (denoising and decoding); ``*_seconds_per_image``
    splits them by stage. ``encode_seconds_per_image`` is spent on other threads, so it adds to no
    batch. A stage that no row carries is None.
    """

    images: int
    batches: int
    images_per_second_per_worker: float
    batch_seconds_p50: float
    batch_seconds_p95: float
    denoise_seconds_per_image: float | None
    decode_seconds_per_image: float | None
    encode_seconds_per_image: float | None


def throughput(rows: Iterable[Mapping[str, Any]]) -> Throughput | None:
    """Throughput of one arm from its rows (one an image; the columns of ``ImageRecord``).

    Rows that share ``batch`` describe the same batch, which counts once. Returns None where no
    batch but warm-ups was measured.
    """
    batches: dict[str, Mapping[str, Any]] = {}
    encode_seconds = []
    for row in rows:
        if row["warm_up"] or not row["batch_seconds"]:
            continue
        batches.setdefault(row["batch"], row)
        if row.get("encode_seconds") is not None:
            encode_seconds.append(row["encode_seconds"])
    if not batches:
        return None
    images = sum(row["batch_size"] for row in batches.values())
    seconds = np.array([row["batch_seconds"] for row in batches.values()])

    def per_image(stage: str) -> float | None:
        known = [row for row in batches.values() if row.get(stage) is not None]
        if not known:
            return None
        return float(sum(row[stage] for row in known) / sum(row["batch_size"] for row in known))

    return Throughput(
        images=images,
        batches=len(batches),
        images_per_second_per_worker=float(images / seconds.sum()),
        batch_seconds_p50=float(np.percentile(seconds, 50)),
        batch_seconds_p95=float(np.percentile(seconds, 95)),
        denoise_seconds_per_image=per_image("denoise_seconds"),
        decode_seconds_per_image=per_image("decode_seconds"),
        encode_seconds_per_image=float(np.mean(encode_seconds)) if encode_seconds else None,
    )
