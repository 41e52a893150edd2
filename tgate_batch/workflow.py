"""Runs the commands: prepare, render, score, report, and those on a finished output."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from typing import Any

from tgate_batch import console
from tgate_batch.config import Config, Model
from tgate_batch.errors import UserError
from tgate_batch.execute import preflight
from tgate_batch.execute.estimate import log_estimate
from tgate_batch.execute.executor import Executor
from tgate_batch.execute.lazy_executor import LazyExecutor
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.reference import make_references, targets
from tgate_batch.execute.rendering import RenderOutcome, render_pending
from tgate_batch.execute.rerender import log_rerendered
from tgate_batch.execute.run_summary import log_models, log_run
from tgate_batch.execute.scoring import conclude, measure_pending
from tgate_batch.execute.verify import repair_output, restore_prompts
from tgate_batch.execute.verify import verify as verify_output
from tgate_batch.models import checkpoint
from tgate_batch.output import card, history, layout, prompt_plan
from tgate_batch.output import run as runs
from tgate_batch.output.error_rows import (
    ShardsWithErrors,
    allowed,
    forget_measurements,
    shards_with_errors,
)
from tgate_batch.output.export import export as export_images
from tgate_batch.output.export import is_split, select_arms
from tgate_batch.output.lock import check_free, output_lock
from tgate_batch.output.run import Finished, Pending, Prepared, Run
from tgate_batch.output.shutdown import MISSING, UNUSABLE
from tgate_batch.render import codec
from tgate_batch.report import thresholds
from tgate_batch.score import registry
from tgate_batch.score.measurement_plan import MeasurementPlan
from tgate_batch.storage import Folder, without_credentials

DONE, OUTSIDE = 0, 3  # exit codes; output.shutdown has the others

EXECUTORS = {  # imported only when a run names it
    "ray": ("tgate_batch.execute.ray", "RayExecutor"),
    "local": ("tgate_batch.execute.local", "LocalExecutor"),
}


def prepare(config: Config, replace_stale: bool = False) -> Prepared:
    """Checks a run and writes nothing; raises UserError with every problem that it finds."""
    return preflight.run_preflight(config, replace_stale, further=[_check_executor])


def dry_run(config: Config, replace_stale: bool = False) -> int:
    """Checks the run, and prints models, arms, shards, images, MACs and an estimated cost."""
    run = prepare(config, replace_stale)
    log_run(run)
    for model in _without_checkpoint(run):
        try:
            checkpoint.check_hub(model)
        except UserError as error:
            console.warning(str(error))
    log_estimate(run)
    return DONE


def render(config: Config, replace_stale: bool = False, retry_errors: bool = False) -> int:
    """Renders what is missing, and error rows again if asked, then scores and reports."""
    _check_is_absolute_in_job("output", config.output, "--output")
    run = prepare(config, replace_stale)
    for model in _without_checkpoint(run):
        checkpoint.check_hub(model)
    log_run(run)
    with _recorded(run) as entry:
        runs.begin_run(run)
        rendered = runs.finished(run)
        pending = runs.pending(run, rendered)
        retries = shards_with_errors(run, rendered) if retry_errors else {}
        forget_measurements(run, retries)
        measurements = MeasurementPlan.of(run)
        if measurements.problems:  # weights that could not be downloaded
            raise UserError(*measurements.problems)
        first = next((m for m in config.models if pending[m.name] or retries.get(m.name)), None)
        if first is None:
            images = run.images_per_arm * len(run.pairs())
            console.info(f"all {images:,} images were rendered before; nothing is missing")
            problems, damaged = _score(run, measurements, entry, rendered)
        else:
            with open_executor(
                run.config, run.folder, first, entry.set_workers, entry.count_memory_kill
            ) as executor:
                outcome = _render_pending(run, pending, retries, executor, replace_stale)
                entry |= {"device": outcome.devices, "invariant": outcome.invariant}
                for problem in outcome.problems:
                    console.warning(problem)
                if outcome.stopped is not None:
                    console.error(
                        f"{outcome.stopped}; finished images are kept. Fix: remove the cause and "
                        "rerun the same command with --retry-errors to continue"
                    )
                    entry["exit_code"] = MISSING
                    return MISSING
                problems = measure_pending(run, measurements, executor)
                damaged = conclude(run, measurements, problems, executor)
        card.write(run.folder)
        entry["exit_code"] = _finish(run, problems, damaged)
    return entry["exit_code"]


def find_plan(
    config: Config,
    limits: Mapping[str, float],
    budget: int | None = None,
    only_plan: bool = False,
) -> int:
    """Finds and confirms the cheapest plan within ``limits``, figure -> largest loss.

    ``budget``: the most images to render. ``only_plan``: says what the search would do, and writes
    nothing. Returns ``OUTSIDE`` if no plan was confirmed, ``MISSING`` if the search cannot go on.
    """
    from tgate_batch.execute.plan_finder import PlanFinder, SearchStopped
    from tgate_batch.execute.plan_setup import set_up
    from tgate_batch.report import frontier
    from tgate_batch.score.plan_losses import MissingMeasurement, PlanLosses

    _check_is_absolute_in_job("output", config.output, "--output")
    setup = set_up(config, limits, budget)
    try:
        run = prepare(setup.config)
    except prompt_plan.StalePrompts:
        raise UserError(
            f"output {without_credentials(config.output)} holds images of other prompts, or of the "
            "same prompts in another order, and a search needs a random order. Fix: give another "
            "--output"
        ) from None
    for model in _without_checkpoint(run):
        checkpoint.check_hub(model)
    search = setup.problem_of(run)
    log_models(run)
    _log(setup.lines(search))
    if only_plan:
        return DONE
    with (
        _recorded(run) as entry,
        LazyExecutor(partial(_open_for, run, setup.model, entry)) as executor,
    ):
        runs.begin_run(run)
        for model in _without_checkpoint(run):
            _log(runs.settle_model(run, model, executor.fingerprint(model), False))
        measurements = MeasurementPlan.of(run).of_figures([one.metric for one in setup.figures])
        if measurements.problems:
            raise UserError(*measurements.problems)
        figures, names = list(setup.figures), tuple(setup.plans)
        losses = PlanLosses(run, setup.model.name, setup.baseline, figures, measurements)
        deliver = partial(_deliver, measurements, executor, entry)
        finder = PlanFinder(run, search, names, losses, deliver)
        try:
            outcome = finder.find()
        except (SearchStopped, MissingMeasurement) as error:
            console.error(
                f"{error}; finished images are kept. Fix the cause and run the same command again"
            )
            entry["exit_code"] = MISSING
            return MISSING
        searched = setup.searched(outcome, run.prompts, finder.earlier)
        recommended = setup.recommended(config, searched.recommended)
        answer = frontier.sentence(searched, finder.time_saved(outcome))
        frontier.write(run.folder, searched, answer, recommended)
        runs.write_description(replace(run, config=recommended))
        card.write(run.folder)
        console.info(answer, event="recommended", plan=searched.recommended)
        where = run.folder.within(layout.RECOMMENDED)
        console.info(f"frontier: {run.folder.within(layout.FRONTIER)}; config: {where}")
        entry["exit_code"] = DONE if searched.recommended else OUTSIDE
    return entry["exit_code"]


def _deliver(
    measurements: MeasurementPlan,
    executor: Executor,
    entry: history.Invocation,
    stage: Prepared,
    pending: Pending,
) -> None:
    """Renders what is pending of a stage of a plan search, and measures its images."""
    from tgate_batch.execute.plan_finder import SearchStopped

    if any(pending.values()):
        rendered = render_pending(stage, pending, executor)
        entry.update(device=rendered.devices, invariant=rendered.invariant)
        for problem in rendered.problems:
            console.warning(problem)
        if rendered.stopped is not None:
            raise SearchStopped(rendered.stopped)
    if problems := measure_pending(stage, measurements, executor):
        raise SearchStopped("; ".join(problems))


def _open_for(run: Run, model: Model, entry: history.Invocation) -> Executor:
    return open_executor(run.config, run.folder, model, entry.set_workers, entry.count_memory_kill)


def score(config: Config) -> int:
    """Scores the images in the output folder, and reports."""
    run = _load_run(config)
    with _recorded(run) as entry:
        problems, damaged = _score(run, MeasurementPlan.of(run), entry)
        entry["exit_code"] = _finish(run, problems, damaged)
    return entry["exit_code"]


def reference(config: Config, source: str, to: str | None = None) -> int:
    """Makes the reference file of every extractor of the config from the images in ``source``.

    ``to``: the file, instead of ``score.reference``; ``{extractor}`` in it becomes each name.
    """
    _check_executor(config)
    builds = targets(config, source, to)
    _check_is_absolute_in_job("reference", to or str(config.score.reference), "--to")
    make_references(builds, lambda folder: open_executor(config, folder))
    return DONE


def report(config: Config) -> int:
    """Writes the report from the scores on disk."""
    return _report(_load_run(config))


def export(
    output: str,
    to: str,
    model: str | None = None,
    arm: str | None = None,
    form: str = "imagefolder",
) -> int:
    """Writes stored images as files into a folder or URI; ``MISSING`` if some do not exist.

    ``form``: the naming convention, ``imagefolder``.
    """
    run = runs.load_run(output)
    pairs = select_arms(run, model, arm)
    progress = WorkCounter("exporting", "shards", len(run.shards) * len(pairs))
    missing = False
    for exported in export_images(run, to, pairs, form, progress.add):
        console.info(str(exported), "exported", **asdict(exported))
        missing = missing or bool(exported.missing)
        for name in filter(is_split, (exported.model, exported.arm)):
            console.info(
                f"note: datasets reads a folder named {name!r} as the split of that name. Fix: "
                f"open {without_credentials(to)}/{exported.model}/{exported.arm} by itself"
            )
    return MISSING if missing else DONE


def verify(output: str, again: int = 0, repair: bool = False, trusted: Sequence[str] = ()) -> int:
    """Verifies an output folder; returns 1 if it has a fault.

    ``again``: the number of images of every arm to render again and compare. ``repair``: remove
    what is damaged, so that the next run makes it again. ``trusted``: the plugins of the run that
    may be imported.
    """
    folder = Folder(output)
    if repair:
        with output_lock(folder):
            findings, run = verify_output(output)
            if run is not None:
                run.folder.fence = folder.fence
            _log(findings.lines())
            remaining, repaired_run = findings, run
            try:
                restored = [] if run is None else list(restore_prompts(run, findings))
            except UserError as error:
                console.error(f"prompts cannot be restored: {error}")
            else:
                _log(restored)
                if restored:  # the other files can be checked now
                    remaining, repaired_run = verify_output(output)
            _log(repair_output(folder, repaired_run, remaining))
    else:
        dead = check_free(folder)
        findings, _ = verify_output(output)
        check_free(folder, dead=dead)
        _log(findings.lines())
    if findings.faults:
        return 1
    return 0 if again == 0 or log_rerendered(output, again, trusted) else 1


def _log(lines: Iterable[str]) -> None:
    for line in lines:
        console.info(line)


def open_executor(
    config: Config,
    folder: Any,
    first: Model | None = None,
    on_workers_changed: Callable[[int], None] = lambda workers: None,
    on_memory_kill: Callable[[], None] = lambda: None,
) -> Executor:
    """Opens the executor that the config names; its first worker starts at once.

    ``on_workers_changed`` is called with the number of workers, ``on_memory_kill`` for each worker
    that is killed because its machine ran out of memory.
    """
    if config.workers.executor == "ray":
        console.info("starting Ray ...", event="phase")
    module, executor = EXECUTORS[config.workers.executor]
    opened: Executor = getattr(import_module(module), executor)(
        config,
        folder,
        first,
        on_workers_changed=on_workers_changed,
        on_memory_kill=on_memory_kill,
    )
    return opened


@contextmanager
def _recorded(run: Run) -> Iterator[history.Invocation]:
    """Locks the output folder and records the invocation, for the length of the block."""
    entry = history.Invocation(run.config.workers)
    with output_lock(run.folder, entry.so_far), history.record_invocation(run.folder, entry):
        yield entry
    if kills := entry.get("memory_kills", 0):
        workers = "1 worker was" if kills == 1 else f"{kills:,} workers were"
        console.warning(
            f"{workers} killed in this run because a machine ran out of memory. Fix: lower "
            "workers.max or sampling.batch_size, or use machines with more memory",
            memory_kills=kills,
        )


def _without_checkpoint(run: Prepared) -> list[Model]:
    """Returns the models whose checkpoint is not on this machine."""
    return [model for model in run.config.models if run.fingerprints[model.name] is None]


def _check_executor(config: Config) -> None:
    if config.workers.executor not in EXECUTORS:
        raise UserError(
            f"workers.executor: unknown executor {config.workers.executor!r}; one of: "
            f"{', '.join(EXECUTORS)}"
        )


def _check_is_absolute_in_job(what: str, path: str, option: str) -> None:
    """Raises UserError for a relative path if this process is a submitted Ray job."""
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if inside_job and "://" not in path and not os.path.isabs(path):
        raise UserError(
            f"{what} {path!r} is relative, and a submitted job runs in a temporary folder. Fix: "
            f"give {option} an absolute path or a URI"
        )


def _render_pending(
    run: Prepared,
    pending: Pending,
    retries: ShardsWithErrors,
    executor: Executor,
    replace_stale: bool,
) -> RenderOutcome:
    """Renders what is pending, and retries error rows."""
    unknown = [model for model in _without_checkpoint(run) if pending[model.name]]
    for model in unknown:
        _log(runs.settle_model(run, model, executor.fingerprint(model), replace_stale))
    if unknown:
        pending = runs.pending(run)
    errors_alone = {
        (model, index): frozenset(arms)
        for model, shards in retries.items()
        for index, arms in shards.items()
    }
    return render_pending(run, _merge(pending, retries), executor, errors_alone)


def _merge(pending: Pending, retries: ShardsWithErrors) -> Pending:
    """Returns what is missing and what is retried, by shard."""
    return {
        model: {
            index: (*shards.get(index, ()), *retries.get(model, {}).get(index, ()))
            for index in sorted({*shards, *retries.get(model, {})})
        }
        for model, shards in pending.items()
    }


def _score(
    run: Run,
    measurements: MeasurementPlan,
    entry: history.Invocation,
    rendered: Finished | None = None,
) -> tuple[dict[str, None], bool]:
    """Measures and aggregates what is missing; opens an executor if workers are needed.

    Returns the problems, and True if measurements are damaged or lost.
    """
    with LazyExecutor(
        lambda: open_executor(
            run.config,
            run.folder,
            on_workers_changed=entry.set_workers,
            on_memory_kill=entry.count_memory_kill,
        )
    ) as executor:
        problems = measure_pending(run, measurements, executor, rendered)
        return problems, conclude(run, measurements, problems, executor)


def _finish(run: Run, problems: dict[str, None], damaged: bool) -> int:
    """Logs the problems, and reports; returns the exit code."""
    for problem in problems:
        console.error(f"{problem}; the other scores follow")
    missing = _log_missing(run) or damaged
    code = _report(run)
    if problems:
        return UNUSABLE
    return MISSING if missing else code


def _log_missing(run: Run) -> bool:
    """Logs which shards have no intact file; returns True if there are any."""
    finished, damaged = runs.finished(run), runs.damaged_files(run.folder)
    for name, reason in damaged.items():
        console.warning(f"{name} is damaged ({reason})")
    any_missing = False
    for model, arm, _ in run.pairs():
        missing = [s.index for s in run.shards if s.index not in finished[model.name, arm]]
        if missing:
            any_missing = True
            console.warning(
                f"{model.name} {arm}: {len(missing):,} of {len(run.shards):,} shards are missing "
                f"or damaged (first: {missing[0]}); tgate-batch render renders them again"
            )
    return any_missing


def _report(run: Run) -> int:
    """Writes and shows the report; returns the exit code.

    ``OUTSIDE`` if a threshold is violated; ``MISSING`` if every image of an arm failed, or more
    images than ``max_errors`` allows.
    """
    from tgate_batch.report import page, terminal  # slow to import

    summary = page.write(run)
    arms = summary["arms"]
    if not arms:
        raise UserError(f"output {run.folder} has no scores. Fix: run tgate-batch score first")
    terminal.show(summary)
    path = str(run.folder.within(layout.REPORT_PAGE))
    console.info(f"report: {path}", event="report", page=path)
    too_many = _log_errors(run, sum(arm["errors"] for arm in arms))
    if too_many or any(arm["errors"] and not arm["images"] for arm in arms):
        return MISSING
    return DONE if summary["passed"] else OUTSIDE


def _log_errors(run: Run, errors: int) -> bool:
    """Logs how many images failed; returns True if ``max_errors`` allows fewer."""
    if not errors:
        return False
    images = run.images_per_arm * len(run.pairs())
    limit = allowed(run.config.max_errors, images)
    line = f"{errors:,} of {images:,} images failed"
    retry = "tgate-batch render with --retry-errors renders them again"
    if errors > limit:
        console.error(
            f"{line}, more than max_errors allows ({limit:g}). Fix: {retry}; or give a larger "
            "max_errors (0.5 allows half of them, null any number)"
        )
        return True
    console.warning(f"{line}; {retry}")
    return False


def _load_run(config: Config) -> Run:
    """Loads the run in the output folder, with the scoring and cost settings of this config."""
    _check_executor(config)
    codec.check(config.images)
    registry.check(config.score)
    thresholds.check(config.thresholds.figures)
    run = runs.load_run(config.output)
    sections = ("score", "cost", "thresholds", "workers", "max_errors", "plugins")
    settings = {name: getattr(config, name) for name in sections}
    return replace(run, config=run.config.model_copy(update=settings))
