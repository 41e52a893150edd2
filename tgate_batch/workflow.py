"""The whole way of a run, in order: prepare, render, score, report; and what is said meanwhile."""

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
from tgate_batch.execute.executor import Executor
from tgate_batch.execute.lazy_executor import LazyExecutor
from tgate_batch.execute.pool import GiveUp, Pool, Stop
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.rendering import RenderOutcome, render_pending
from tgate_batch.execute.task import MeasureTask
from tgate_batch.metrics.cost import Devices
from tgate_batch.models import checkpoint
from tgate_batch.output import card, history, layout, prompt_store
from tgate_batch.output import run as runs
from tgate_batch.output.config_warnings import config_warnings
from tgate_batch.output.error_rows import (
    ShardsWithErrors,
    allowed,
    forget_measurements,
    shards_with_errors,
)
from tgate_batch.output.lock import check_free, output_lock
from tgate_batch.output.run import Finished, Pending, Prepared, Run
from tgate_batch.output.shutdown import MISSING, UNUSABLE
from tgate_batch.prompts import reader as prompts
from tgate_batch.render import codec
from tgate_batch.report import thresholds
from tgate_batch.score import registry
from tgate_batch.score.measure import Measured
from tgate_batch.score.measurement_plan import (
    MeasurementPlan,
    distance_of,
    expected_measurements,
    orders,
)
from tgate_batch.storage import Folder, without_credentials

DONE, OUTSIDE = 0, 3  # exit codes, beside those of how a process leaves

# A worker's sustained rate, for the estimate of --dry-run alone.
_ASSUMED_MACS_PER_SECOND = {"GPU": 100e12, "CPU": 0.03e12}
EXECUTORS = {  # imported only when a run names it
    "ray": ("tgate_batch.execute.ray", "RayExecutor"),
    "local": ("tgate_batch.execute.local", "LocalExecutor"),
}


def prepare(config: Config, replace_stale: bool = False) -> Prepared:
    """Checks a run before anything is written; raises UserError with all that cannot be used."""
    return preflight.run_preflight(config, replace_stale, further=[_check_executor])


def dry_run(config: Config, replace_stale: bool = False) -> int:
    """Checks the run, and prints models, arms, shards, images, MACs and an estimated cost."""
    run = prepare(config, replace_stale)
    from tgate_batch.models.macs.arm import macs_of_arm  # seconds, that bad input need not wait for

    finished = runs.finished(run)
    devices = Devices.of(config.cost, config.workers.gpus_each, config.workers.cpus_each)
    rate = _ASSUMED_MACS_PER_SECOND[devices.kind]
    _say_run(run)
    _say(run.failed)
    for model in _unknown(run):
        try:
            checkpoint.check_hub(model)
        except UserError as error:
            console.warning(str(error))
    total = 0.0
    for model, name, arm in run.pairs():
        done = len(finished[model.name, name])
        sampling = run.sampling(model.name)
        of_kinds = {
            kind: macs_of_arm(model, arm, sampling.of_kind(kind)).per_image_with_attention
            for kind in run.batch_keys
        }
        each = (
            sum(of_kinds[kind] * prompts for kind, prompts in run.batch_keys.items()) / run.prompts
        )
        total += each * run.images_per_arm
        console.info(
            f"  {model.name} {name}: {run.images_per_arm:,} images, "
            f"{each / 1e9:,.1f} G MACs an image, {done:,} of {len(run.shards):,} shards done"
        )
    usd = devices.usd(total / rate)
    cost = f"no price given ({devices.key})" if usd is None else f"${usd:,.2f}"
    console.info(
        f"estimate: {devices.hours(total / rate):,.2f} {devices.kind} hours at {rate / 1e12:g} T "
        f"MACs/s a worker, {cost}; a run measures both, and bills start and wait too"
    )
    return DONE


def render(config: Config, replace_stale: bool = False, retry_errors: bool = False) -> int:
    """Renders what is missing, and error rows again if asked, then scores and reports."""
    _check_place_of_job("output", config.output, "--output")
    run = prepare(config, replace_stale)
    for model in _unknown(run):
        checkpoint.check_hub(model)
    _say_run(run)
    _say(run.failed)
    with _working(run) as entry:
        runs.begin_run(run)
        held = runs.finished(run)
        pending = runs.pending(run, held)
        again = shards_with_errors(run, held) if retry_errors else {}
        forget_measurements(run, again)
        measurements = MeasurementPlan.of(run)
        if measurements.problems:  # what a hub was to give
            raise UserError(*measurements.problems)
        first = next((m for m in config.models if pending[m.name] or again.get(m.name)), None)
        if first is None:
            images = run.images_per_arm * len(run.pairs())
            console.info(f"{images:,} images were rendered before; nothing is missing")
            problems, damaged = _measured_and_concluded(run, measurements, entry, held)
        else:
            with open_executor(
                run.config, run.folder, first, entry.set_workers, entry.count_memory_kill
            ) as executor:
                drawn = _render_pending(run, pending, again, executor, replace_stale)
                entry |= {"device": drawn.devices, "invariant": drawn.invariant}
                for problem in drawn.problems:
                    console.warning(problem)
                if drawn.stopped is not None:
                    console.error(
                        f"{drawn.stopped}; what is finished stays: mend the cause, and the same "
                        "command with --retry-errors goes on"
                    )
                    entry["exit_code"] = MISSING
                    return MISSING
                problems = measure_pending(run, measurements, executor)
                damaged = _conclude(run, measurements, problems, executor)
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

    _check_place_of_job("output", config.output, "--output")
    setup = set_up(config, limits, budget)
    try:
        run = prepare(setup.config)
    except prompt_store.StalePrompts:
        raise UserError(
            f"output {without_credentials(config.output)} holds images of other prompts, or of the "
            "same prompts in another order, and a search needs a random order. Fix: give another "
            "--output"
        ) from None
    for model in _unknown(run):
        checkpoint.check_hub(model)
    search = setup.problem_of(run)
    _say_model(run)
    _say(setup.lines(search))
    if only_plan:
        return DONE
    with (
        _working(run) as entry,
        LazyExecutor(partial(_open_for, run, setup.model, entry)) as executor,
    ):
        runs.begin_run(run)
        for model in _unknown(run):
            _say(runs.settle_model(run, model, executor.fingerprint(model), False))
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
    """Scores what the output folder holds, and reports."""
    run = _reopened(config)
    with _working(run) as entry:
        measurements = MeasurementPlan.of(run)
        problems, damaged = _measured_and_concluded(run, measurements, entry)
        entry["exit_code"] = _finish(run, problems, damaged)
    return entry["exit_code"]


def reference(config: Config, source: str, to: str | None = None) -> int:
    """Makes the reference's file of every extractor of the config, of the pictures in ``source``.

    ``to``: the file, in place of ``score.reference``; ``{extractor}`` in it stands for each name.
    """
    from tgate_batch.execute.reference import make_references, targets

    _check_executor(config)
    makings = targets(config, source, to)
    _check_place_of_job("reference", to or str(config.score.reference), "--to")
    make_references(makings, lambda folder: open_executor(config, folder))
    return DONE


def report(config: Config) -> int:
    """Writes the report from the scores on disk."""
    return _report(_reopened(config))


def export(
    output: str,
    to: str,
    model: str | None = None,
    arm: str | None = None,
    form: str = "imagefolder",
) -> int:
    """Writes stored pictures as files into a folder or URI; ``MISSING`` where some are not there.

    ``form``: the convention of names, ``imagefolder``.
    """
    from tgate_batch.output.export import export as exported
    from tgate_batch.output.export import is_split, select_arms

    run = runs.load_run(output)
    pairs = select_arms(run, model, arm)
    progress = WorkCounter("exporting", "shards", len(run.shards) * len(pairs))
    missing = False
    for found in exported(run, to, pairs, form, progress.add):
        console.info(str(found), "exported", **asdict(found))
        missing = missing or bool(found.missing)
        for name in filter(is_split, (found.model, found.arm)):
            console.info(
                f"note: datasets takes a folder {name!r} for a split of that name: open "
                f"{without_credentials(to)}/{found.model}/{found.arm} by itself"
            )
    return MISSING if missing else DONE


def verify(output: str, again: int = 0, repair: bool = False, trusted: Sequence[str] = ()) -> int:
    """Proves an output folder; 1 where something in it is not as it should be.

    ``again``: as many pictures of every arm are drawn again and compared with the stored ones;
    ``trusted``: the plugins that this may import, of those that the run names.
    ``repair``: what is damaged is removed, so that the next run makes it again.
    """
    from tgate_batch.execute.verify import repair_output, restore_prompts
    from tgate_batch.execute.verify import verify as verified

    folder = Folder(output)
    if repair:
        with output_lock(folder):
            found, run = verified(output)
            if run is not None:
                run.folder.fence = folder.fence
            _say(found.lines())
            left, again_run = found, run
            try:
                written = [] if run is None else list(restore_prompts(run, found))
            except UserError as error:
                console.error(f"prompts cannot be written again: {error}")
            else:
                _say(written)
                if written:  # now all the rest can be judged
                    left, again_run = verified(output)
            _say(repair_output(folder, again_run, left))
    else:
        dead = check_free(folder)
        found, _ = verified(output)
        check_free(folder, dead=dead)
        _say(found.lines())
    if again and not found.faults:
        return _drawn_again(output, again, trusted)
    return 1 if found.faults else 0


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        console.info(line)


def _drawn_again(output: str, count: int, trusted: Sequence[str]) -> int:
    """Draws stored pictures again and says whether they are equal; 1 where one is not alike."""
    from tgate_batch.execute.rerender import rerender_apart

    named = runs.load_run(output).config.plugins
    for name in named:
        if name not in trusted:
            console.warning(
                f"the run names the plugin {name}, which is code and is not run. Fix: if you trust "
                f"it, add --plugin {name}"
            )

    each = f"{count:,} pictures" if count != 1 else "1 picture"
    console.info(f"drawing {each} of every arm again, in another process ...", event="phase")
    found = []
    for picture in rerender_apart(output, count, trusted):
        found.append(picture)
        if picture.levels is None:
            verdict = f"cannot be drawn: {picture.error}"
        elif picture.same_bytes:
            verdict = "equal, bit for bit"
        elif not picture.alike:
            verdict = f"differs by up to {picture.levels} of 255 levels"
            verdict += ", though it is to be equal bit for bit here" if picture.exact else ""
        elif picture.levels:
            verdict = f"alike within {picture.levels} of 255 levels"
        else:
            verdict = "equal in every pixel, in other bytes"
        name = f"{picture.model} {picture.arm} {picture.prompt_id}/{picture.image_number}"
        console.info(f"{name}: {verdict}")
    alike = [picture for picture in found if picture.alike]
    exact = all(picture.exact for picture in found)
    how = "bit for bit" if exact else "at most 1 level of 255 apart"
    console.info(f"{len(found)} pictures drawn again, {len(alike)} alike ({how})")
    return 0 if found and len(alike) == len(found) else 1


def open_executor(
    config: Config,
    folder: Any,
    first: Model | None = None,
    on_workers_changed: Callable[[int], None] = lambda workers: None,
    on_memory_kill: Callable[[], None] = lambda: None,
) -> Executor:
    """Opens the executor that the config names; its first worker starts at once.

    ``on_workers_changed`` is called with the number of workers; ``on_memory_kill`` for each worker
    that was ended because its machine ran out of memory.
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
def _working(run: Run) -> Iterator[history.Invocation]:
    """Owns the folder and records the invocation for the length of the block."""
    entry = history.Invocation(run.config.workers)
    with output_lock(run.folder, entry.so_far), history.record_invocation(run.folder, entry):
        yield entry
    if kills := entry.get("memory_kills", 0):
        workers = "1 worker was" if kills == 1 else f"{kills:,} workers were"
        console.warning(
            f"{workers} ended in this run because a machine ran out of memory. Fix: lower "
            "workers.max or sampling.batch_size, or use machines with more memory",
            memory_kills=kills,
        )


def _unknown(run: Prepared) -> list[Model]:
    """The models whose checkpoint is not on this machine."""
    return [model for model in run.config.models if run.fingerprints[model.name] is None]


def _say_run(run: Run) -> None:
    """The size of a run and what of its prompts is used, before anything of it is done."""
    images = run.images_per_arm * len(run.pairs())
    arms = " and ".join(
        f"{len(names):,} {what}{'s' if len(names) != 1 else ''}"
        for what, names in (("arm", run.config.arms), ("model", run.config.models))
    )
    console.info(
        f"{run.prompts:,} prompts in {len(run.shards):,} shards, {arms}: {images:,} images -> "
        f"{run.folder}",
        event="run",
        images=images,
    )
    _say_model(run)
    used = prompts.describe_columns(run.config.prompts, run.config.score.by)
    if used.files > 1:
        console.info(f"prompts: {used.files:,} files, the first {used.first}")
    if used.overrides:
        kinds = f"{len(run.batch_keys):,} kind{'s' if len(run.batch_keys) != 1 else ''} of rows"
        console.info(
            f"prompts: rows set their own {', '.join(used.overrides)}: {kinds} (prompts.columns "
            "says which columns count)"
        )
    if used.unused:
        console.info(
            f"prompts: not used: column{'s' if len(used.unused) != 1 else ''} "
            f"{', '.join(used.unused)} (prompts.keep carries them on)",
            unused=used.unused,
        )
    for remark in config_warnings(run.config):
        console.warning(remark)


def _say_model(run: Run) -> None:
    for model in run.config.models:
        if (one := run.models.get(model.name)) is not None:
            console.info(f"{model.name}: {one.summary_line()}", event="model", model=model.name)
            for line in one.partial_loras:
                console.warning(f"models: {model.name}: {line}; the others are left out")


def _check_words(config: Config) -> None:
    """The names that a config holds as strings are refused by their owners."""
    _check_executor(config)
    codec.check(config.images)
    registry.check(config.score)
    thresholds.check(config.thresholds.figures)


def _check_executor(config: Config) -> None:
    if config.workers.executor not in EXECUTORS:
        raise UserError(
            f"workers.executor: unknown executor {config.workers.executor!r}; one of: "
            f"{', '.join(EXECUTORS)}"
        )


def _check_place_of_job(what: str, where: str, option: str) -> None:
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if inside_job and "://" not in where and not os.path.isabs(where):
        raise UserError(
            f"{what} {where!r} is relative, and a submitted job runs in a temporary folder: give "
            f"{option} an absolute path or a URI"
        )


def _render_pending(
    run: Prepared,
    pending: Pending,
    again: ShardsWithErrors,
    executor: Executor,
    replace_stale: bool,
) -> RenderOutcome:
    """Renders what is pending, and the error rows that are drawn again."""
    models = [model for model in run.config.models if pending[model.name]]
    if unknown := [model for model in models if run.fingerprints[model.name] is None]:
        for model in unknown:
            _say(runs.settle_model(run, model, executor.fingerprint(model), replace_stale))
        pending = runs.pending(run)
    errors_alone = {
        (model, index): frozenset(arms)
        for model, shards in again.items()
        for index, arms in shards.items()
    }
    return render_pending(run, _together(pending, again), executor, errors_alone)


def _together(pending: Pending, again: ShardsWithErrors) -> Pending:
    """What is missing and what is drawn again, the arms of a shard side by side."""
    return {
        model: {
            index: (*shards.get(index, ()), *again.get(model, {}).get(index, ()))
            for index in sorted({*shards, *again.get(model, {})})
        }
        for model, shards in pending.items()
    }


def _measured_and_concluded(
    run: Run,
    measurements: MeasurementPlan,
    entry: history.Invocation,
    held: Finished | None = None,
) -> tuple[dict[str, None], bool]:
    """Measures and adds up what is missing; opens an executor if it takes one."""
    with LazyExecutor(
        lambda: open_executor(
            run.config,
            run.folder,
            on_workers_changed=entry.set_workers,
            on_memory_kill=entry.count_memory_kill,
        )
    ) as executor:
        problems = measure_pending(run, measurements, executor, held)
        return problems, _conclude(run, measurements, problems, executor)


def measure_pending(
    run: Run, measurements: MeasurementPlan, executor: Executor, held: Finished | None = None
) -> dict[str, None]:
    """Measures what is missing; returns why some of it could not be, each reason once.

    ``held``: what ``runs.finished`` said, where nothing was rendered since.
    """
    held = runs.finished(run) if held is None else held
    tasks = [MeasureTask(model, order) for model, order in orders(run, measurements, held)]
    problems = dict.fromkeys(measurements.problems)
    return problems | _measure(run, tasks, executor) if tasks else problems


def _measure(run: Run, tasks: list[MeasureTask], executor: Executor) -> dict[str, None]:
    problems: dict[str, None] = {}
    progress = WorkCounter("measuring", "shards", len(tasks))
    damaged = runs.damaged_files(run.folder)
    for event in executor.run(Pool.of(tasks)):
        if isinstance(event, GiveUp | Stop):
            problems[f"some cannot be measured: {event}"] = None
        elif isinstance(event, Measured):
            progress.add()
            problems |= dict.fromkeys(event.problems)
            damaged |= event.damaged
        else:
            progress.tick()
    progress.say()
    runs.note_damaged(run.folder, damaged)
    return problems


def _conclude(
    run: Run, measurements: MeasurementPlan, problems: dict[str, None], executor: Executor
) -> bool:
    """Adds the measurements up and writes the scores; returns whether some were damaged or lost.

    What could not be done joins the problems.
    """
    from tgate_batch.execute.reference import prepare_reference
    from tgate_batch.execute.scoring import conclude_arms
    from tgate_batch.score.scoring import conclude_orders, write_scores

    references, missing = {}, dict(measurements.missing)
    for name, extractor in measurements.extractors.items():
        try:
            held = prepare_reference(run, name, extractor, executor)
        except UserError as error:
            problems[str(error)] = None
            missing[distance_of(name)] = str(error)
        else:
            if held is not None:
                references[extractor.name] = held
    by = run.config.score.by
    if by is not None and prompt_store.category_column(run.ledger) != by:
        problems[
            f"score.by: the output's prompts do not hold the column {by!r}; run tgate-batch render "
            "again, which freezes it"
        ] = None
        by = None
    orders = list(conclude_orders(run, measurements, references, by))
    found = conclude_arms(run, orders, problems, executor)
    write_scores(run, measurements, references, found.arms, missing)
    for one in found.arms.values():
        problems |= dict.fromkeys(one.problems)
    for name in found.damaged:
        console.warning(f"{name} was damaged; tgate-batch score measures it again")
    lost = expected_measurements(run, found.missing)
    if lost:
        console.error(
            f"{len(lost):,} measurements were not found while sums were made (first: {lost[0]}), "
            "and the figures lack their images. Fix: see that the storage is well, then run "
            "tgate-batch score again"
        )
    return bool(found.damaged or lost)


def _finish(run: Run, problems: dict[str, None], damaged: bool) -> int:
    """Says what is wrong and reports; returns the exit code."""
    for problem in problems:
        console.error(f"{problem}; the other scores follow")
    missing = _say_missing(run) or damaged
    outside = _report(run)
    if problems:
        return UNUSABLE
    return MISSING if missing or outside == MISSING else outside


def _say_missing(run: Run) -> bool:
    """Prints which shards have no whole file; returns whether there are any."""
    finished, damaged = runs.finished(run), runs.damaged_files(run.folder)
    for name, reason in damaged.items():
        console.warning(f"{name} is damaged ({reason})")
    found = False
    for model, arm, _ in run.pairs():
        missing = [s.index for s in run.shards if s.index not in finished[model.name, arm]]
        if missing:
            found = True
            console.warning(
                f"{model.name} {arm}: {len(missing):,} of {len(run.shards):,} shards are missing "
                f"or damaged (first: {missing[0]}); tgate-batch render renders them again"
            )
    return found


def _report(run: Run) -> int:
    """Writes and shows the report; ``OUTSIDE`` where a threshold was not kept, and ``MISSING``
    where every image of an arm failed, or more of them than ``max_errors`` allows."""
    from tgate_batch.report import page, terminal

    summary = page.write(run)
    arms = summary["arms"]
    if not arms:
        raise UserError(f"output {run.folder} holds no scores; run tgate-batch score first")
    terminal.show(summary)
    where = str(run.folder.within(layout.REPORT_PAGE))
    console.info(f"report: {where}", event="report", page=where)
    if _say_failed(run, sum(arm["errors"] for arm in arms)):
        return MISSING
    if any(arm["errors"] and not arm["images"] for arm in arms):
        return MISSING
    return DONE if summary["passed"] else OUTSIDE


def _say_failed(run: Run, errors: int) -> bool:
    """Says how many images failed and what to do; returns whether these are too many."""
    if not errors:
        return False
    images = run.images_per_arm * len(run.pairs())
    limit = allowed(run.config.max_errors, images)
    told = f"{errors:,} of {images:,} images failed"
    again = "tgate-batch render with --retry-errors renders them again"
    if errors > limit:
        console.error(
            f"{told}, more than max_errors allows ({limit:g}). Fix: {again}; or give a larger "
            "max_errors (0.5 allows half of them, null any number)"
        )
        return True
    console.warning(f"{told}; {again}")
    return False


def _reopened(config: Config) -> Run:
    """The run in the folder, under the scoring and cost settings of this config."""
    _check_words(config)
    held = runs.load_run(config.output)
    fresh = held.config.model_copy(
        update={
            "score": config.score,
            "cost": config.cost,
            "thresholds": config.thresholds,
            "workers": config.workers,
            "max_errors": config.max_errors,
            "plugins": config.plugins,
        }
    )
    return replace(held, config=fresh)
