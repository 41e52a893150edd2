"""The content of ``report.json``: each arm's scores, compared with its baseline."""

import json
from dataclasses import asdict
from importlib import resources
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.metrics.cost import Devices, bill, per_1000_images, usd_per_1000_images
from tgate_batch.output import history, layout, shapes
from tgate_batch.output.run import Run, describe
from tgate_batch.render.timing import aggregate_workers
from tgate_batch.report import thresholds
from tgate_batch.report.columns import MACS
from tgate_batch.score import registry

_ONLY_WARM_UPS = (
    "no batch was timed, because each worker's first batch of an arm is a warm-up. Fix: render "
    "more prompts, or set a smaller workers.max or sampling.batch_size"
)


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of the result of ``summarize``."""
    file = resources.files("tgate_batch.report").joinpath("report.schema.json")
    return json.loads(file.read_text(encoding="utf-8"))


def summarize(run: Run) -> dict[str, Any]:
    """Returns ``{"run", "arms": [...], "workers", "passed"}``; a key is None if not measured.

    ``speedup`` is images/s per worker over the baseline's of the same model. ``macs_saved`` is the
    share of the baseline's MACs, attention included, that the arm saves. ``run.bill`` includes the
    current invocation until now.
    """
    arms = [
        _arm(run, model.name, name, arm)
        for model, name, arm in run.pairs()
        if run.folder.exists(layout.scores(model.name, name))
    ]
    workers = aggregate_workers(shapes.read_workers(run.folder))
    billed = bill(history.read(run.folder), run.config.cost, run.config.workers)
    joules = None if workers is None else workers["joules"]
    _share(arms, "usd_per_1000_images_billed", billed["usd"], billed["withheld"])
    _share(
        arms,
        "wh_per_1000_images",
        None if joules is None else joules / 3600,
        "no worker measured its GPU's energy",
    )
    for arm in arms:
        baseline = _baseline(run, arms, arm["model"])
        _compare(arm, baseline)
        arm["thresholds"] = thresholds.judge(arm, baseline, run.config.thresholds)
        arm["gates"] = arm["thresholds"]  # the previous key
    return {
        "run": _run(run, arms) | {"bill": billed},
        "arms": arms,
        "workers": workers,
        "passed": all(judged["passed"] for arm in arms for judged in arm["thresholds"]),
    }


def _run(run: Run, arms: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings and provenance of the images, read from the files.

    ``versions`` and ``git`` are those of most files; ``made_by`` lists all.
    """
    makers = history.merge_makers(maker for arm in arms for maker in arm.get("made_by", ()))
    most = makers[0] if makers else history.software()
    pictures = {
        layout.images(model.name, name): run.provenance_of(model.name, name)
        for model, name, _ in run.pairs()
        if layout.images(model.name, name) in run.ledger
    }
    described = describe(run)
    _add_older_keys(described["config"])
    return described | {
        "output": str(run.folder),
        "pictures": pictures,
        "versions": most["versions"],
        "git": most["git"],
        "made_by": makers,
        "macs_conventions": MACS,
    }


def _add_older_keys(config: dict[str, Any]) -> None:
    """Adds the previous names of some keys."""
    config["gates"] = config["thresholds"]
    weights = config["score"]["weights"]
    older = {"clip": "clip", "lpips": "lpips", "extractor_path": "extractor"}
    config["score"] |= {old: weights.get(name) for old, name in older.items()}


def _arm(run: Run, model: str, name: str, arm: Any) -> dict[str, Any]:
    scores = _scores(run, model, name)
    plan = None if arm.plan is None else asdict(arm.plan)
    guidance = None if arm.interval is None else _guidance(arm)
    rate, workers = scores["images_per_second_per_worker"], run.config.workers
    devices = Devices.of(run.config.cost, workers.gpus_each, workers.cpus_each)
    dollars = usd_per_1000_images(rate, devices)
    withheld = dict(scores.get("withheld", {}))
    if rate is None and scores["images"]:
        withheld["images_per_second_per_worker"] = _ONLY_WARM_UPS
    if dollars is None:
        withheld["usd_per_1000_images"] = devices.unpriced or _ONLY_WARM_UPS
    return {
        "plan": plan,
        "deepcache": arm.deepcache,
        "guidance": guidance,
        "forecast": arm.forecast,
        "steps": arm.steps,
        "scheduler": arm.scheduler,
        **scores,
        "usd_per_1000_images": dollars,
        "withheld": withheld,
    }


def _guidance(arm: Any) -> dict[str, Any]:
    """The interval of guidance, and what else its plan sets."""
    interval = asdict(arm.interval)
    more = {name: interval[name] for name in ("every", "weights", "scale") if interval[name]}
    then = {"then": interval["then"]} if interval["then"] != "none" else {}
    return {"first": interval["first"], "end": interval["end"]} | then | more


def _scores(run: Run, model: str, name: str) -> dict[str, Any]:
    """Reads an arm's scores; raises UserError if the file has another shape or arm."""
    file = layout.scores(model, name)
    scores = shapes.read(run.folder, file, shapes.ScoresFile)
    odd = [
        metric.name
        for metric in registry.METRICS
        if not isinstance(scores.get(metric.name), int | float | None)
    ]
    if odd or (scores["model"], scores["arm"]) != (model, name):
        why = f"{odd[0]} is not a number" if odd else "it belongs to another arm"
        raise UserError(
            f"output {run.folder}: {file} cannot be used: {why}. Fix: {shapes.ScoresFile.advice}"
        )
    return scores


def _share(arms: list[dict[str, Any]], key: str, total: float | None, reason: str | None) -> None:
    """Adds each arm's share of a total per 1,000 images, or the reason why there is none."""
    shares = [None] * len(arms) if total is None else per_1000_images(total, arms)
    for arm, share in zip(arms, shares, strict=True):
        arm[key] = share
        if share is None:
            arm["withheld"][key] = reason if total is None else "no usable image"


def _baseline(run: Run, arms: list[dict], model: str) -> dict | None:
    return next((a for a in arms if (a["model"], a["arm"]) == (model, run.config.baseline)), None)


def _compare(arm: dict[str, Any], baseline: dict[str, Any] | None) -> None:
    arm["is_baseline"] = baseline is arm
    arm["speedup"] = arm["macs_saved"] = None
    if baseline is None:
        return
    arm["speedup"] = _ratio(
        arm["images_per_second_per_worker"], baseline["images_per_second_per_worker"]
    )
    if arm["speedup"] is None and arm["images"] and baseline["images"]:
        arm["withheld"]["speedup"] = _ONLY_WARM_UPS
    share = _ratio(arm["macs_per_image_with_attention"], baseline["macs_per_image_with_attention"])
    arm["macs_saved"] = None if share is None else 1 - share


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under
