"""The report as files: ``report.json``, ``report.md``, and a page that needs nothing beside it."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from tgate_batch.metrics.entry import Arm
from tgate_batch.metrics.precision_recall import NEIGHBOURS
from tgate_batch.output import layout, parquet
from tgate_batch.output.run import Run
from tgate_batch.render.time_sheet import BESIDE, ON_DEVICE
from tgate_batch.report import table
from tgate_batch.report.columns import columns
from tgate_batch.report.summary import summarize

_NAMES = 2  # columns that every table has: model and arm
_BY_CHANCE = 0.05  # of the changes where there is none
_WITHHELD = {  # what is withheld, where it is no column of its own
    "distance_corrected": "bias-corrected distance",
    "distance_change": "change of the distance",
    "intervals": "intervals of means over pictures",
    "change": "intervals of changes",
    "images_per_second_interval": "interval of images/s",
    "speedup_interval": "interval of the speed-up",
}
_GALLERY_PROMPTS = 24
_GALLERY_PIXELS = 256  # the longest side of a picture on the page


def write(run: Run) -> dict[str, Any]:
    """Writes ``report/`` from the scores on disk; returns the content of ``report.json``."""
    summary = summarize(run)
    run.folder.write(layout.REPORT_JSON, json.dumps(summary, indent=2))
    run.folder.write(layout.REPORT_MARKDOWN, _markdown(summary))
    run.folder.write(layout.REPORT_PAGE, _html(run, summary))
    return summary


class Part(NamedTuple):
    """One table: its heading row and the others, which of those are a baseline's, and a note."""

    title: str
    rows: list[list[str]]
    baselines: list[bool]
    note: str | None


def _markdown(summary: dict[str, Any]) -> str:
    arms = summary["arms"]
    lines = [f"# Run {summary['run']['output']}", ""]
    for part in parts(summary):
        lines += [f"## {part.title}", "", table.markdown(part.rows), ""]
        lines += [part.note, ""] if part.note else []
    lines += [f"- {note}" for note in (*notes(arms), *_cost_notes(summary))]
    for arm in summary["arms"]:
        for judged in arm["thresholds"]:
            lines.append(f"- threshold: {arm['model']} {arm['arm']}: {judged['verdict']}")
        for row in arm["error_rows"]:
            lines.append(
                f"- error: {arm['model']} {arm['arm']} prompt {row['prompt_id']}: {row['error']}"
            )
    return "\n".join(lines) + "\n"


def parts(summary: dict[str, Any]) -> list[Part]:
    """The report's tables, without those that have nothing to say."""
    arms = summary["arms"]
    found = [
        _part("Speed and cost", arms, "speed"),
        _part("Quality, picture by picture", arms, "pictures"),
        *_broken_down(arms, summary["run"]["config"]["score"].get("by")),
        _part("Quality, against the reference set", arms, "sets"),
        *(
            _part(f"Quality, against the reference set, by {extractor}", held, "sets")
            for extractor, held in _further(arms).items()
        ),
    ]
    return [part for part in found if len(part.rows[0]) > _NAMES]


def _part(title: str, arms: Sequence[Arm], name: table.TableName) -> Part:
    count = table.comparisons(arms, name)
    note = (
        f"This table makes {count} comparison{'s' if count > 1 else ''}: expect "
        f"{_BY_CHANCE * count:.2g} intervals that exclude 0 by chance."
        if count
        else None
    )
    baselines = [bool(arm.get("is_baseline")) for arm in arms]
    return Part(title, table.rows(arms, name), baselines, note)


def _further(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Extractor -> arms, with its figures in the place of the first one's."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        for extractor, figures in (arm.get("distances") or {}).items():
            official = (figures.get("distance_label") or "").startswith("FID-")
            found.setdefault(extractor, []).append(
                {key: arm.get(key) for key in ("model", "arm", "is_baseline")}
                | figures
                | {"fid" if official else "fd": figures.get("distance")}
            )
    return found


def _broken_down(arms: Sequence[Arm], column: str | None) -> Iterator[Part]:
    """Figures of single pictures by the values of a column of the prompt set, arm beside arm."""
    values = list(dict.fromkeys(value for arm in arms for value in arm.get("by") or {}))
    held = [
        (value, arm, arm["by"][value])
        for value in values
        for arm in arms
        if value in (arm.get("by") or {})
    ]
    if not held:
        return
    views = [
        {key: arm.get(key) for key in ("model", "arm", "is_baseline")}
        | figures
        | {"paired": figures}
        for _, arm, figures in held
    ]
    part = _part(f"Quality, picture by picture, by {column or 'value'}", views, "pictures")
    if len(part.rows[0]) <= _NAMES:
        return
    head, *body = part.rows
    rows = [[column or "value", *head[:_NAMES], "prompts", *head[_NAMES:]]]
    for line, (value, _, figures) in zip(body, held, strict=True):
        rows.append([str(value), *line[:_NAMES], str(figures["prompts"]), *line[_NAMES:]])
    yield part._replace(rows=rows)


def notes(arms: Sequence[Arm]) -> list[str]:
    """What the figures are to be read with."""
    every = [*arms, *(arm for held in _further(arms).values() for arm in held)]
    found = [
        "MACs per image: all of the denoiser. The published convention counts Linear and Conv "
        "alone; the other one attention's products too.",
        "images/s per worker: measured over denoising and decoding, each worker's first batch of "
        "an arm left out.",
        *_of_distances(every),
    ]
    if any(column.bounds(arm) is not None for column in columns(arms) for arm in every):
        found.append(
            "[95% CI]: the delete-a-group jackknife over 20 groups of prompts, for images/s and "
            "speed-up of batches; of a yes/no change Bonett and Price (2012), widened where the "
            "groups vary more. Changes are over the prompts that both arms delivered unbroken."
        )
    return [*found, *_withheld(every)]


def _of_distances(arms: Sequence[Arm]) -> Iterator[str]:
    """Labels and notes of the distances, the sizes of the sets, and what is left out."""
    said: dict[str, list[str]] = {}
    for arm in arms:
        if arm.get("distance_note"):
            note = f"{arm['distance_label']}: {arm['distance_note']}."
            said.setdefault(note, []).append(_name(arm))
    several = len({arm.get("distance_label") for arm in arms if arm.get("distance_label")}) > 1
    for note, names in said.items():
        yield f"{note} ({', '.join(names)})" if several else note
    references = {
        arm["reference"]["sha256"]: arm["reference"] for arm in arms if arm.get("reference")
    }
    for reference in references.values():
        count = reference.get("count")
        size = f"{count:,} pictures, " if count else ""
        yield (
            f"Reference set: {reference['name']}, {size}sha256 {reference['sha256'][:16]}…. It is "
            "taken as it is: its own noise is left out of every interval."
        )
    samples = dict.fromkeys(
        (arm["kid"]["pictures"], (arm.get("reference") or {}).get("sample"))
        for arm in arms
        if (arm.get("kid") or {}).get("pictures")
    )
    for pictures, reference_pictures in samples:
        other = f" and {reference_pictures:,} of the reference" if reference_pictures else ""
        yield f"Kernel distance, precision and recall: of {pictures:,} pictures of the arm{other}."
    if any(arm.get("precision") is not None for arm in arms):
        yield f"Precision and recall: of the {NEIGHBOURS} nearest neighbours (k = {NEIGHBOURS})."
    if any(arm.get("distance_label") for arm in arms):
        yield (
            "A distance between sets can miss damage that a person sees: read it beside the "
            "paired figures (PSNR, SSIM against the baseline's same-seed picture) and the "
            "per-prompt ones."
        )


def _withheld(arms: Sequence[Arm]) -> Iterator[str]:
    """Each reason for figures that are not shown, once: of what and of which arms."""
    words = {column.name: column.heading for column in columns(arms)} | _WITHHELD
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for arm in arms:
        for key, reason in (arm.get("withheld") or {}).items():
            figures, names = reasons.setdefault(reason, ({}, {}))
            figures[words.get(key, key)] = names[_name(arm)] = None
    for reason, (figures, names) in reasons.items():
        yield f"Not shown: {', '.join(figures)} ({', '.join(names)}): {reason}."


def _name(arm: Arm) -> str:
    return f"{arm['model']} {arm['arm']}"


def _cost_notes(summary: dict[str, Any]) -> Iterator[str]:
    """What costs and energy are of, if there are any."""
    bill = summary["run"]["bill"]
    count = bill["invocations"]
    if bill["usd"] is not None:
        yield (
            f"$ per 1,000 images: billed is all that was held ({bill['device_hours']:.3f} "
            f"{bill['devices']} hours, ${bill['usd']:.4f}: the wall clock of {count} "
            f"invocation{'s' if count > 1 else ''}, each times the most workers it held at one "
            "time), shared among arms by their time on the device, over the pictures that are not "
            "broken; "
            "marginal is denoising and decoding alone."
        )
    if any(arm["wh_per_1000_images"] is not None for arm in summary["arms"]):
        yield "Wh per 1,000 images: what the GPUs took from loading to the last file, shared alike."


def _html(run: Run, summary: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("tgate_batch.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        run=summary["run"],
        parts=parts(summary),
        arms=summary["arms"],
        workers=summary["workers"],
        times=_times(summary["workers"]),
        notes=[*notes(summary["arms"]), *_cost_notes(summary)],
        galleries=[_gallery(run, model.name) for model in run.config.models],
    )


def _times(workers: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Stages in the order they happen, with their share of the workers' wall."""
    if workers is None:
        return []
    seconds = workers["seconds"]
    return [
        {"name": name, "seconds": seconds[name], "share": seconds[name] / seconds["wall"]}
        for name in (*ON_DEVICE, "idle", *BESIDE)
    ]


def _gallery(run: Run, model: str) -> dict[str, Any]:
    """The first prompts of the first shard with every arm's picture, baseline first."""
    baseline = run.config.baseline
    arms = sorted(run.config.arms, key=lambda arm: arm != baseline)
    pictures = {arm: dict(_pictures(run, model, arm)) for arm in arms}
    keys = list(dict.fromkeys(key for arm in arms for key in pictures[arm]))[:_GALLERY_PROMPTS]
    rows = [
        {
            "prompt": next(pictures[arm][key]["prompt"] for arm in arms if key in pictures[arm]),
            "id": key[0],
            "cells": [pictures[arm].get(key, {}).get("picture") for arm in arms],
        }
        for key in keys
    ]
    return {"model": model, "arms": arms, "baseline": baseline, "rows": rows}


def _pictures(run: Run, model: str, arm: str) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    count = 0
    for row in _rows(run, model, arm):
        if count >= _GALLERY_PROMPTS:
            return
        if row["image_number"] == 0:
            count += 1
            shown = {"prompt": row["prompt"], "picture": _data_uri(row["image"])}
            yield (row["prompt_id"], 0), shown


def _rows(run: Run, model: str, arm: str) -> Iterator[dict[str, Any]]:
    """An arm's rows in order, until a shard that is missing or damaged."""
    columns = ["prompt_id", "image_number", "prompt", "image"]
    for shard in run.shards:
        try:
            name, identity = run.pictures(model, arm, shard)
            for batch in parquet.read_batches(run.folder, name, columns, identity=identity):
                yield from batch.to_pylist()
        except (*parquet.DAMAGE, KeyError):
            return


def _data_uri(image: dict[str, Any] | None) -> str | None:
    """A picture small enough for a page, inside the page."""
    if image is None:
        return None
    with Image.open(io.BytesIO(image["bytes"])) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_GALLERY_PIXELS, _GALLERY_PIXELS))
    stream = io.BytesIO()
    small.save(stream, "webp", quality=90)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
