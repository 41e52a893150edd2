"""Images for the page: for each model some prompts, with every arm's image side by side.

Those that changed most in the whole run are among them, the others are taken at random. The
sample's bytes have a limit, whatever the size of the run and of its images.
"""

import base64
import io
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from tgate_batch.metrics.base import ArmFigures, PictureMetric
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Run
from tgate_batch.score import registry
from tgate_batch.storage.images import open_image

BYTES = 2_400_000  # of all images together, before they are spelled in base64 (a third more)
_PICTURES = 240  # of all models and arms, roughly
_PROMPTS = (4, 48)  # at least and at most, of a model
_CHANGED = 2 / 3  # of the prompts are there since they changed most, where there are so many
_RANDOM_SHARDS = 16  # that the others are taken from
_LONGEST_SIDE = 512
_SMALL = 256  # images up to this side are kept as they are, where there is room
_BYTES_A_PIXEL = 0.12  # of WebP at quality 80, to begin with
_LONGEST_PROMPT = 2000  # characters that are shown
_THREADS = 4

RowKey = tuple[str, int]  # prompt id, image number


@dataclass
class GalleryCell:
    """One image: its data URI with its size, what was measured of it, or why it is missing.

    ``changed`` and ``worse`` order the gallery: the higher, the earlier. None: not measured.
    """

    arm: str
    uri: str | None = None
    size: tuple[int, int] = (0, 0)
    figures: list[str] = field(default_factory=list)
    changed: float | None = None
    worse: float | None = None


class GalleryRow(NamedTuple):
    """A prompt, and its image in every arm, the baseline's first."""

    id: str
    number: int
    prompt: str
    cells: list[GalleryCell]


class Gallery(NamedTuple):
    """A model's sample. ``chosen`` of the rows changed most; ``prompts``: of the whole run."""

    model: str
    arms: list[str]
    baseline: str | None
    rows: list[GalleryRow]
    chosen: int
    prompts: int


def galleries(run: Run, arms: Sequence[ArmFigures]) -> list[Gallery]:
    """One gallery a model; ``arms`` are the entries of report.json."""
    models = list(dict.fromkeys(arm["model"] for arm in arms))
    return [
        _gallery(run, model, [a for a in arms if a["model"] == model], models) for model in models
    ]


def _gallery(run: Run, model: str, arms: Sequence[ArmFigures], models: Sequence[str]) -> Gallery:
    arms = sorted(arms, key=lambda arm: not arm["is_baseline"])
    least, most = _PROMPTS
    count = max(least, min(most, _PICTURES // (len(arms) * len(models))))
    changed = _most_changed(arms, round(count * _CHANGED))
    wanted = _with_others(run, changed, count)
    budget = BYTES // len(models) // max(1, len(wanted))
    by_shard: dict[int, list[RowKey]] = {}
    plans = {plan.index: plan for plan in run.shards}
    for key, shard in wanted.items():
        if shard in plans:  # what scores say is checked no further
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
    """Images and their shards: the first of every arm's and metric's list, then the second."""
    lists = [
        pictures
        for arm in arms
        for pictures in (arm.get("most_changed") or {}).values()
        if pictures
    ]
    found: dict[RowKey, int] = {}
    for place in range(max(map(len, lists), default=0)):
        for pictures in lists:
            if place < len(pictures) and len(found) < count:
                one = pictures[place]
                found.setdefault((one["prompt_id"], one["image_number"]), one["shard"])
    return found


def _with_others(run: Run, changed: Mapping[RowKey, int], count: int) -> dict[RowKey, int]:
    """Fills the sample up with prompts at random, the same ones every time."""
    chance = random.Random(0)
    shards = chance.sample(run.shards, min(_RANDOM_SHARDS, len(run.shards)))
    keys = [
        ((prompt.id, 0), shard.index)
        for shard in shards
        for prompt in prompt_store.load_shard(run.folder, shard).prompts
    ]
    chance.shuffle(keys)
    found = dict(changed)
    for key, shard_index in keys:
        if len(found) >= count:
            break
        found.setdefault(key, shard_index)
    return found


def _rows(
    run: Run,
    model: str,
    arms: Sequence[ArmFigures],
    shard: ShardPlan,
    keys: list[RowKey],
    budget: int,
) -> Iterator[GalleryRow]:
    """The rows of one shard; ``budget``: bytes that the images of a row may take."""
    pictures = {arm["arm"]: _pictures(run, model, arm["arm"], shard, keys) for arm in arms}
    values = {
        (arm["arm"], metric.name): _values(run, model, arm["arm"], shard, keys, metric)
        for arm in arms
        for metric in registry.METRICS
    }
    prompts = {
        prompt.id: prompt.text for prompt in prompt_store.load_shard(run.folder, shard).prompts
    }
    places = {name: place for place, name in enumerate(prompts)}
    baseline = next((arm["arm"] for arm in arms if arm["is_baseline"]), None)
    known = [key for key in keys if key[0] in places]
    for key in sorted(known, key=lambda key: (places[key[0]], key[1])):
        held = {name: found[key] for name, found in pictures.items() if found.get(key)}
        small = dict(zip(held, shrunk(list(held.values()), budget), strict=True))
        cells = []
        for arm in arms:
            cell = GalleryCell(arm["arm"])
            if arm["arm"] in small:
                content, cell.size = small[arm["arm"]]
                cell.uri = "data:image/webp;base64," + base64.b64encode(content).decode()
            _measured(cell, key, values, baseline)
            cells.append(cell)
        text = prompts[key[0]]
        if len(text) > _LONGEST_PROMPT:
            text = text[:_LONGEST_PROMPT] + "…"
        yield GalleryRow(*key, text, cells)


def _pictures(
    run: Run, model: str, arm: str, shard: ShardPlan, keys: Iterable[RowKey]
) -> dict[RowKey, bytes]:
    """The wanted images of one file; none of a file that is missing or damaged."""
    found: dict[RowKey, bytes] = {}
    wanted = set(keys)
    try:
        name, identity = run.pictures(model, arm, shard)
        with parquet.open_table(run.folder, name, identity) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["prompt_id", "image_number"])
                held = list(zip(*ids.to_pydict().values(), strict=True))
                places = [place for place, key in enumerate(held) if key in wanted]
                if not places:
                    continue
                images = file.read_row_group(group, columns=["image"])["image"]
                for place in places:
                    image = images[place].as_py()
                    if image is not None:
                        found[held[place]] = image["bytes"]
    except (*parquet.DAMAGE, KeyError):
        pass
    return found


def _values(
    run: Run, model: str, arm: str, shard: ShardPlan, keys: Iterable[RowKey], metric: PictureMetric
) -> dict[RowKey, float]:
    """What was measured of the wanted images; nothing where it was not, or is damaged."""
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


def _measured(
    cell: GalleryCell,
    key: RowKey,
    values: Mapping[tuple[str, str], Mapping[RowKey, float]],
    baseline: str | None,
) -> None:
    """Writes an image's figures into its cell, and what orders it.

    It changed as the first metric beside the baseline's image says, and got worse as the last
    metric of single images does; where there is only one of the two kinds it says both.
    """
    for metric in registry.METRICS:
        value = values[cell.arm, metric.name].get(key)
        if value is None:
            continue
        sign = 1.0 if metric.column.better == "lower" else -1.0
        if metric.needs_baseline:
            cell.figures.append(_said(metric, value))
            cell.changed = sign * value if cell.changed is None else cell.changed
            continue
        theirs = (
            None if cell.arm == baseline else values.get((str(baseline), metric.name), {}).get(key)
        )
        if metric.yes_no:
            cell.figures.append(_yes_no(metric, value, theirs))
        else:
            change = "" if theirs is None else f" ({value - theirs:+.2f})"
            cell.figures.append(f"{_said(metric, value)}{change}")
        if theirs is not None:
            cell.worse = sign * (value - theirs)
    if cell.worse is None:
        cell.worse = cell.changed
    if cell.changed is None:
        cell.changed = cell.worse


def _said(metric: PictureMetric, value: float) -> str:
    """A figure of one image: "PSNR (dB)" and 25.1 make "PSNR 25.1 dB"."""
    heading, _, unit = metric.column.heading.partition(" (")
    return f"{heading} {metric.column.word(value)} {unit.rstrip(')')}".rstrip()


def _yes_no(metric: PictureMetric, value: float, theirs: float | None) -> str:
    answer = f"{metric.column.heading}: {'yes' if value else 'no'}"
    if theirs is None or theirs == value:
        return answer
    return f"{answer} ({'gained' if value > theirs else 'lost'})"


def shrunk(pictures: list[bytes], budget: int) -> list[tuple[bytes, tuple[int, int]]]:
    """Images as WebP with their width and height, so small that all fit into ``budget`` bytes."""
    opened = [open_image(content).convert("RGB") for content in pictures]
    if not opened:
        return []
    longest = max(max(picture.size) for picture in opened)
    if longest <= _SMALL:
        exact = [_webp(picture, longest, lossless=True) for picture in opened]
        if sum(len(content) for content, _ in exact) <= budget:
            return exact
    side = min(_LONGEST_SIDE, longest, round(math.sqrt(budget / len(opened) / _BYTES_A_PIXEL)))
    while True:
        found = [_webp(picture, side) for picture in opened]
        taken = sum(len(content) for content, _ in found)
        if taken <= budget or side <= 16:
            return found
        side = max(16, min(side - 1, int(0.95 * side * math.sqrt(budget / taken))))


def _webp(picture: Image.Image, side: int, lossless: bool = False) -> tuple[bytes, tuple[int, int]]:
    small = picture.copy()
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "webp", quality=80, lossless=lossless)
    return stream.getvalue(), small.size
