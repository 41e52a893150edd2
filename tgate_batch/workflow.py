"""The whole way of a run, in order: prepare, render, score, report; and what is said meanwhile."""

import os
import sys
from typing import TYPE_CHECKING

from tgate_batch.config import Config
from tgate_batch.errors import UserError
from tgate_batch.output import run as runs
from tgate_batch.output.run import Run
from tgate_batch.prompts.read import ShardPlan

if TYPE_CHECKING:
    from tgate_batch.execute.ray import Pool

# A worker's sustained rate, for the estimate of --dry-run alone.
_ASSUMED_MACS_PER_SECOND = {"GPU": 100e12, "CPU": 0.03e12}


def dry_run(config: Config) -> int:
    """Prints models, arms, shards, images, MACs and an estimated cost; loads no weights."""
    from tgate_batch.models.macs import macs_of_arm

    run = runs.prepare(config)
    device = "GPU" if config.workers.gpus_each else "CPU"
    rate = _ASSUMED_MACS_PER_SECOND[device]
    print(f"{run.prompts} prompts in {len(run.shards)} shards -> {run.folder}")
    total = 0.0
    for model, name, arm in run.pairs():
        done = len(run.done(model.name, name))
        each = macs_of_arm(model, arm, run.sampling(model.name)).per_image_with_attention
        total += each * run.images_per_arm
        shown = f"{each / 1e9:,.1f} G MACs an image"
        print(
            f"  {model.name} {name}: {run.images_per_arm} images, {shown}, "
            f"{done} of {len(run.shards)} shards done"
        )
    hours = total / rate / 3600
    price = config.cost.usd_per_gpu_hour
    cost = "no price given (cost.usd_per_gpu_hour)" if price is None else f"${hours * price:,.2f}"
    print(
        f"estimate: {hours:,.2f} {device} hours at {rate / 1e12:g} T MACs/s, {cost}; "
        "a run measures both"
    )
    return 0


def render(config: Config) -> int:
    """Renders what is missing, then scores and reports."""
    from tgate_batch.execute import ray as actors

    if actors.inside_job() and "://" not in config.output and not os.path.isabs(config.output):
        raise UserError(
            f"output {config.output!r} is relative, and a submitted job runs in a temporary "
            "folder: give --output an absolute path or a URI"
        )
    run = runs.prepare(config)
    runs.freeze(run)
    with actors.Pool(run) as pool:
        _render_missing(run, pool)
        _measure(run, pool)
    return _score(run)


def score(config: Config) -> int:
    """Scores what the output folder holds, and reports."""
    from tgate_batch.execute import ray as actors

    run = _reopened(config)
    with actors.Pool(run, renders=False) as pool:
        _measure(run, pool)
    return _score(run)


def report(config: Config) -> int:
    """Writes the report from the scores on disk."""
    return _report(_reopened(config))


def _render_missing(run: Run, pool: "Pool") -> None:
    from tgate_batch.execute.progress import RunProgress

    each = run.config.sampling.images_per_prompt
    totals = {(model.name, arm): run.images_per_arm for model, arm, _ in run.pairs()}
    done = {
        (model.name, arm): sum(
            shard.prompts * each
            for shard in run.shards
            if arm not in pool.open_arms[model.name].get(shard.index, ())
        )
        for model, arm, _ in run.pairs()
    }
    if totals == done:
        print(f"{sum(totals.values())} images were rendered before; nothing is missing")
        return
    with RunProgress(totals, done) as progress:
        for receipt in pool.render():
            progress.tick() if receipt is None else progress.add(receipt)


def _measure(run: Run, pool: "Pool") -> None:
    print(f"scoring {len(run.pairs()) * len(run.shards)} shards ...", flush=True)
    for problem in pool.measure():
        if problem is not None:
            print(f"warning: {problem}", flush=True)


def _score(run: Run) -> int:
    from tgate_batch.score import figures as score

    asked = score.asked(run)
    problems, reference = list(asked.problems), None
    standing = run.standing()
    try:
        reference = score.reference(run, asked, standing)
    except UserError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"error: {problem}; the other scores follow", file=sys.stderr, flush=True)
    code = 2 if problems else 0
    for model, arm, _ in run.pairs():
        _warn_of_missing(run, model.name, arm, standing[model.name, arm])
        score.score_arm(run, asked, reference, standing, model.name, arm)
    return max(code, _report(run))


def _warn_of_missing(run: Run, model: str, arm: str, done: list[ShardPlan]) -> None:
    indices = {shard.index for shard in done}
    missing = [shard.index for shard in run.shards if shard.index not in indices]
    if missing:
        print(
            f"warning: {model} {arm}: {len(missing)} of {len(run.shards)} shards are missing or "
            f"damaged (first: {missing[0]}); jobs/render.py renders them again",
            flush=True,
        )


def _report(run: Run) -> int:
    """Writes and shows the report; 3 where a quality gate failed."""
    from tgate_batch.report import page, table

    summary = page.write(run)
    arms = summary["arms"]
    if not arms:
        raise UserError(f"output {run.folder} holds no scores; run jobs/score.py first")
    table.show(arms)
    for arm in arms:
        if arm["speedup"] is not None and not arm["is_baseline"]:
            saved = "" if arm["macs_saved"] is None else f", {arm['macs_saved']:.1%} MACs saved"
            print(f"{arm['model']} {arm['arm']}: {arm['speedup']:.2f}x baseline{saved}")
    images = sum(arm["images"] for arm in arms)
    errors = sum(arm["errors"] for arm in arms)
    print(f"{images} images, {errors} errors")
    for arm in arms:
        for gate in arm["gates"]:
            print(f"{arm['model']} {arm['arm']}: {gate['verdict']}")
    print(f"report: {run.folder.path('report/index.html')}")
    return 0 if summary["passed"] else 3


def _reopened(config: Config) -> Run:
    """The run in the folder, under the scoring and cost settings of this config."""
    held = runs.opened(config.output)
    fresh = held.config.model_copy(
        update={
            "score": config.score,
            "cost": config.cost,
            "gates": config.gates,
            "workers": config.workers,
        }
    )
    return Run(fresh, held.folder, held.shards)
