"""The report as files: ``report.json``, ``report.md``, and a page that needs nothing beside it."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from tgate_batch.output import layout, parquet
from tgate_batch.output.run import Run
from tgate_batch.render.time_sheet import BESIDE, ON_DEVICE
from tgate_batch.report import table
from tgate_batch.report.summary import summarize

_NAMES = 2  # columns that every table has: model and arm
_GALLERY_PROMPTS = 24
_GALLERY_PIXELS = 256  # the longest side of a picture on the page


def write(run: Run) -> dict[str, Any]:
    """Writes ``report/`` from the scores on disk; returns the content of ``report.json``."""
    summary = summarize(run)
    run.folder.write(layout.REPORT_JSON, json.dumps(summary, indent=2))
    run.folder.write(layout.REPORT_MARKDOWN, _markdown(summary))
    run.folder.write(layout.REPORT_PAGE, _html(run, summary))
    return summary


def _markdown(summary: dict[str, Any]) -> str:
    arms = summary["arms"]
    lines = [f"# Run {summary['run']['output']}", ""]
    for title, rows in _tables(arms):
        lines += [f"## {title}", "", table.markdown(rows), ""]
    lines += [f"- {note}" for note in (*_notes(arms), *_cost_notes(summary))]
    for arm in summary["arms"]:
        for judged in arm["thresholds"]:
            lines.append(f"- threshold: {arm['model']} {arm['arm']}: {judged['verdict']}")
        for row in arm["error_rows"]:
            lines.append(
                f"- error: {arm['model']} {arm['arm']} prompt {row['prompt_id']}: {row['error']}"
            )
    return "\n".join(lines) + "\n"


def _tables(arms: list[dict[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """The report's tables by title, without those that have nothing to say."""
    every = [
        ("Speed and cost", table.rows(arms, "speed")),
        ("Quality, picture by picture", table.rows(arms, "pictures")),
        ("Quality, against the reference set", table.rows(arms, "sets")),
    ]
    return [(title, rows) for title, rows in every if len(rows[0]) > _NAMES]


def _notes(arms: list[dict[str, Any]]) -> list[str]:
    """What the figures are to be read with."""
    notes = [
        "MACs per image: all of the denoiser, attention products included; the published "
        "convention (Linear and Conv only) is `macs_per_image` in report.json.",
        "images/s per worker: measured over denoising and decoding, each worker's first batch of "
        "an arm left out.",
    ]
    for arm in arms:
        if arm.get("distance_note"):
            notes.append(f"{arm['distance_label']}: {arm['distance_note']}.")
            break
    reference = next((arm["reference"] for arm in arms if arm.get("reference")), None)
    if reference is not None:
        notes.append(f"Reference set: {reference['name']}, sha256 {reference['sha256'][:16]}….")
    if any(arm.get("distance_change") for arm in arms):
        notes.append(
            "Intervals are 95% bootstraps over this run's pictures (the reference stays as it "
            "is); changes draw the same prompts of both arms. Of infinitely many: extrapolated "
            "from all, half and a quarter of the pictures (arXiv 1911.07023)."
        )
    if any(arm.get("distance_label") for arm in arms):
        notes.append(
            "A distance between sets can miss damage that a person sees: read it beside the "
            "paired figures (PSNR, SSIM against the baseline's same-seed picture) and the "
            "per-prompt ones."
        )
    return notes


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
        tables=_tables(summary["arms"]),
        arms=summary["arms"],
        workers=summary["workers"],
        times=_times(summary["workers"]),
        notes=[*_notes(summary["arms"]), *_cost_notes(summary)],
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
