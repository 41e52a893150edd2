"""Samples images for the page: for each model some prompts, with the image of every arm.

The sample has the prompts whose images changed most in the whole run, and random ones. Its size in
bytes is limited.
"""

import base64
import io
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import NamedTuple

from PIL import Image

from tgate_batch.metrics.base import ImageMetric
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Run
from tgate_batch.report.columns import ArmFigures
from tgate_batch.score import registry
from tgate_batch.storage.images import open_image

BYTES = 2_400_000  # of all images, before base64 (a third more)
_IMAGES = 240  # of all models and arms, roughly
_PROMPTS = (4, 48)  # per model, at least and at most
_CHANGED = 2 / 3  # share of the prompts that changed most, if there are so many
_RANDOM_SHARDS = 16  # from which the others are sampled
_LONGEST_SIDE = 512  # pixels
_SMALL = 256  # pixels: images up to this side are stored losslessly if they fit
_BYTES_PER_PIXEL = 0.12  # first estimate for WebP at quality 80
_LONGEST_PROMPT = 2000  # characters
_THREADS = 4

RowKey = tuple[str, int]  # prompt id, image number


@dataclass
class GalleryCell:
    """One image: its data URI (None if missing), its size in pixels, and its figures as text.

    ``changed`` and ``worse`` order the gallery, highest first; None if not measured.
    """

    arm: str
    uri: str | None = None
    size: tuple[int, int] = (0, 0)
    figures: list[str] = field(default_factory=list)
    changed: float | None = None
    worse: float | None = None


class GalleryRow(NamedTuple):
    """A prompt with its image of every arm, the baseline's first."""

    id: str
    number: int
    prompt: str
    cells: list[GalleryCell]


class Gallery(NamedTuple):
    """A model's sample: ``chosen`` of its rows changed most; the run has ``prompts`` prompts."""

    model: str
    arms: list[str]
    baseline: str | None
    rows: list[GalleryRow]
    chosen: int
    prompts: int


def galleries(run: Run, arms: Sequence[ArmFigures]) -> list[Gallery]:
    """Returns one gallery per model; ``arms`` are the entries of report.json."""
    models = list(dict.fromkeys(arm["model"] for arm in arms))
    return [
        _gallery(run, model, [a for a in arms if a["model"] == model], models) for model in models
    ]


def _gallery(run: Run, model: str, arms: Sequence[ArmFigures], models: Sequence[str]) -> Gallery:
    arms = sorted(arms, key=lambda arm: not arm["is_baseline"])
    least, most = _PROMPTS
    count = max(least, min(most, _IMAGES // (len(arms) * len(models))))
    changed = _most_changed(arms, round(count * _CHANGED))
    wanted = _with_others(run, changed, count)
    budget = BYTES // len(models) // max(1, len(wanted))
    by_shard: dict[int, list[RowKey]] = {}
    plans = {plan.index: plan for plan in run.shards}
    for key, shard in wanted.items():
        if shard in plans:  # the scores may be a stranger's
            by_shard.setdefault(shard, []).append(key)
    with ThreadPoolExecutor(_THREADS) as threads:
        parts = threads.map(
            lambda item: list(_rows(run, model, arms, plans[item[0]], item[1], budget)),
            sorted(by_shard.items()),
        )
        rows = [row for part in parts for row in part]
    baseline = next((arm["arm"] for arm in arms if arm["is_baseline"]), None)
    names = [arm["arm"] for arm in arms]
    return Gallery(model, names, baseline, rows, len(changed), run.prompts)


def _most_changed(arms: Sequence[ArmFigures], count: int) -> dict[RowKey, int]:
    """Rows and their shards: the first of every arm's and metric's list, then the second."""
    lists = [images for arm in arms for images in (arm.get("most_changed") or {}).values()]
    chosen: dict[RowKey, int] = {}
    for image in chain.from_iterable(zip_longest(*lists)):
        if image is not None and len(chosen) < count:
            chosen.setdefault((image["prompt_id"], image["image_number"]), image["shard"])
    return chosen


def _with_others(run: Run, changed: Mapping[RowKey, int], count: int) -> dict[RowKey, int]:
    """Completes the sample with random prompts, the same ones every time."""
    chance = random.Random(0)
    shards = chance.sample(run.shards, min(_RANDOM_SHARDS, len(run.shards)))
    keys = [
        ((prompt.id, 0), shard.index)
        for shard in shards
        for prompt in prompt_store.load_shard(run.folder, shard).prompts
    ]
    chance.shuffle(keys)
    chosen = dict(changed)
    for key, shard_index in keys:
        if len(chosen) >= count:
            break
        chosen.setdefault(key, shard_index)
    return chosen


def _rows(
    run: Run,
    model: str,
    arms: Sequence[ArmFigures],
    shard: ShardPlan,
    keys: list[RowKey],
    budget: int,
) -> Iterator[GalleryRow]:
    """Yields the rows of one shard; ``budget``: bytes for the images of a row."""
    images = {arm["arm"]: _images(run, model, arm["arm"], shard, keys) for arm in arms}
    values = {
        (arm["arm"], metric.name): _values(run, model, arm["arm"], shard, keys, metric)
        for arm in arms
        for metric in registry.METRICS
    }
    prompts = {
        prompt.id: prompt.text for prompt in prompt_store.load_shard(run.folder, shard).prompts
    }
    order = {name: index for index, name in enumerate(prompts)}
    baseline = next((arm["arm"] for arm in arms if arm["is_baseline"]), None)
    known = [key for key in keys if key[0] in order]
    for key in sorted(known, key=lambda key: (order[key[0]], key[1])):
        stored = {name: by_key[key] for name, by_key in images.items() if by_key.get(key)}
        small = dict(zip(stored, shrink(list(stored.values()), budget), strict=True))
        cells = []
        for arm in arms:
            cell = GalleryCell(arm["arm"])
            if arm["arm"] in small:
                content, cell.size = small[arm["arm"]]
                cell.uri = "data:image/webp;base64," + base64.b64encode(content).decode()
            _add_figures(cell, key, values, baseline)
            cells.append(cell)
        text = prompts[key[0]]
        if len(text) > _LONGEST_PROMPT:
            text = text[:_LONGEST_PROMPT] + "…"
        yield GalleryRow(*key, text, cells)


def _images(
    run: Run, model: str, arm: str, shard: ShardPlan, keys: Iterable[RowKey]
) -> dict[RowKey, bytes]:
    """Some images of one file; empty if the file is missing or damaged."""
    images: dict[RowKey, bytes] = {}
    wanted = set(keys)
    try:
        name, identity = run.pictures(model, arm, shard)
        with parquet.open_table(run.folder, name, identity) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["prompt_id", "image_number"])
                rows = list(zip(*ids.to_pydict().values(), strict=True))
                chosen = [row for row, key in enumerate(rows) if key in wanted]
                if not chosen:
                    continue
                column = file.read_row_group(group, columns=["image"])["image"]
                for row in chosen:
                    image = column[row].as_py()
                    if image is not None:
                        images[rows[row]] = image["bytes"]
    except (*parquet.DAMAGE, KeyError):
        pass
    return images


def _values(
    run: Run, model: str, arm: str, shard: ShardPlan, keys: Iterable[RowKey], metric: ImageMetric
) -> dict[RowKey, float]:
    """A metric's values of some images; empty if the file is missing or damaged."""
    folder = layout.measured(metric.name, model, arm)
    if folder not in run.ledger:
        return {}
    wanted = set(keys)
    try:
        table = parquet.read_table(run.folder, layout.shard_file(folder, shard.index))
    except parquet.DAMAGE:
        return {}
    every = zip(
        *(table[name].to_pylist() for name in ("prompt_id", "image_number", "value")), strict=True
    )
    return {(i, n): value for i, n, value in every if (i, n) in wanted and value is not None}


def _add_figures(
    cell: GalleryCell,
    key: RowKey,
    values: Mapping[tuple[str, str], Mapping[RowKey, float]],
    baseline: str | None,
) -> None:
    """Adds an image's figures to its cell, and the values that order the gallery.

    Of the headline metrics, ``changed`` is the first that compares with the baseline's image, and
    ``worse`` the change of the last one that does not; if there is only one kind, it gives both.
    """
    for metric in registry.METRICS:
        value = values[cell.arm, metric.name].get(key)
        if value is None:
            continue
        if metric.needs_baseline:
            cell.figures.append(_figure(metric, value))
            if metric.headline and cell.changed is None:
                cell.changed = metric.sign * value
            continue
        other = None
        if cell.arm != baseline:
            other = values.get((str(baseline), metric.name), {}).get(key)
        cell.figures.append(_figure(metric, value, other))
        if metric.headline and other is not None:
            cell.worse = metric.sign * (value - other)
    if cell.worse is None:
        cell.worse = cell.changed
    if cell.changed is None:
        cell.changed = cell.worse


def _figure(metric: ImageMetric, value: float, baseline: float | None = None) -> str:
    """A figure of one image as text: "PSNR (dB)" and 25.1 become "PSNR 25.1 dB"."""
    if metric.yes_no:
        answer = f"{metric.heading}: {'yes' if value else 'no'}"
        if baseline is None or baseline == value:
            return answer
        return f"{answer} ({'gained' if value > baseline else 'lost'})"
    heading, _, unit = metric.heading.partition(" (")
    figure = f"{heading} {metric.pattern.format(value)} {unit.rstrip(')')}".rstrip()
    return figure if baseline is None else f"{figure} ({value - baseline:+.2f})"


def shrink(images: list[bytes], budget: int) -> list[tuple[bytes, tuple[int, int]]]:
    """Returns images as WebP with width and height, small enough to fit ``budget`` bytes."""
    decoded = [open_image(content).convert("RGB") for content in images]
    if not decoded:
        return []
    longest = max(max(image.size) for image in decoded)
    if longest <= _SMALL:
        exact = [_webp(image, longest, lossless=True) for image in decoded]
        if sum(len(content) for content, _ in exact) <= budget:
            return exact
    side = min(_LONGEST_SIDE, longest, round(math.sqrt(budget / len(decoded) / _BYTES_PER_PIXEL)))
    while True:
        encoded = [_webp(image, side) for image in decoded]
        size = sum(len(content) for content, _ in encoded)
        if size <= budget or side <= 16:
            return encoded
        side = max(16, min(side - 1, int(0.95 * side * math.sqrt(budget / size))))


def _webp(image: Image.Image, side: int, lossless: bool = False) -> tuple[bytes, tuple[int, int]]:
    small = image.copy()
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "webp", quality=80, lossless=lossless)
    return stream.getvalue(), small.size
