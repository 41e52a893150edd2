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
    "no batch was timed: each worker's first batch of an arm warms up and is left out; render more "
    "prompts, or give fewer workers (workers.max) or a smaller sampling.batch_size"
)


def schema() -> dict[str, Any]:
    """The JSON Schema of what ``summarize`` returns."""
    file = resources.files("tgate_batch.report").joinpath("report.schema.json")
    return json.loads(file.read_text(encoding="utf-8"))


def summarize(run: Run) -> dict[str, Any]:
    """``{"run", "arms": [...], "workers", "passed"}``; keys are stable, None where not measured.

    ``speedup`` is images/s per worker over the baseline's of the same model;
    ``macs_saved`` the share of the baseline's MACs, attention included, that the arm leaves out.
    ``run.bill`` counts an invocation that has not ended up to now.
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
        _beside_baseline(arm, baseline)
        arm["thresholds"] = thresholds.judge(arm, baseline, run.config.thresholds)
        arm["gates"] = arm["thresholds"]  # their older key, for this version
    return {
        "run": _run(run, arms) | {"bill": billed},
        "arms": arms,
        "workers": workers,
        "passed": all(judged["passed"] for arm in arms for judged in arm["thresholds"]),
    }


def _run(run: Run, arms: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings and provenance of the images, from the files and not from this process.

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
    """The names that report.json had before, for this version: beside their new ones."""
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
    """An arm's scores; raises UserError where the file has another shape, or is of another arm."""
    file = layout.scores(model, name)
    found = shapes.read(run.folder, file, shapes.ScoresFile)
    odd = [
        metric.name
        for metric in registry.METRICS
        if not isinstance(found.get(metric.name), int | float | None)
    ]
    if odd or (found["model"], found["arm"]) != (model, name):
        why = f"{odd[0]} is no number" if odd else "it is of another arm"
        raise UserError(
            f"output {run.folder}: {file} cannot be used: {why}. Fix: {shapes.ScoresFile.advice}"
        )
    return found


def _share(arms: list[dict[str, Any]], key: str, total: float | None, reason: str | None) -> None:
    """Gives each arm its share of a total, for 1,000 images; or the reason why there is none."""
    shares = [None] * len(arms) if total is None else per_1000_images(total, arms)
    for arm, share in zip(arms, shares, strict=True):
        arm[key] = share
        if share is None:
            arm["withheld"][key] = reason if total is None else "no usable image"


def _baseline(run: Run, arms: list[dict], model: str) -> dict | None:
    return next((a for a in arms if (a["model"], a["arm"]) == (model, run.config.baseline)), None)


def _beside_baseline(arm: dict[str, Any], baseline: dict[str, Any] | None) -> None:
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
