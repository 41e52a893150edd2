"""Makes references on an executor's workers: for a job of its own, and where scoring needs one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tgate_batch import console
from tgate_batch.config import Config
from tgate_batch.errors import UserError, one_line
from tgate_batch.execute.executor import Executor
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.pool import GiveUp, Pool, Stop
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.execute.task import PartExtracted, ReferenceTask
from tgate_batch.metrics.features import Extractor, check_extractor, load_extractor
from tgate_batch.output import layout
from tgate_batch.output.lock import output_lock
from tgate_batch.output.run import Run
from tgate_batch.score import image_sources
from tgate_batch.score.reference import Reference, is_file, load_reference, parse_reference
from tgate_batch.score.reference_file import ReferenceBuild, ReferenceOrder
from tgate_batch.score.registry import reference_of, weights_of, with_extractor_name
from tgate_batch.storage import Folder, without_credentials


def targets(config: Config, spec: str, to: str | None = None) -> list[ReferenceBuild]:
    """The files that a config wants of the pictures in ``spec``, one an extractor; writes nothing.

    ``to`` stands for ``score.reference``. Raises UserError for a place that cannot be written or is
    no ``.npz``, for several extractors with one file, and as ``image_sources.open_source`` does.
    """
    score, where = config.score, to or config.score.reference
    if where is None:
        raise UserError("score.reference is missing: set it, or give --to FILE.npz")
    if not is_file(where):
        raise UserError(
            f"a reference is written as an .npz file, and {without_credentials(where)} is none; "
            "give --to FILE.npz"
        )
    if len(score.extractor) > 1 and "{extractor}" not in where:
        raise UserError(
            f"{without_credentials(where)} would be the file of {len(score.extractor)} extractors; "
            "put {extractor} into its name"
        )
    for name in score.extractor:
        check_extractor(name, weights_of(score, name))
    places = {name: Folder.of_file(with_extractor_name(where, name)) for name in score.extractor}
    for folder, file in places.values():
        folder.check_writable()
        if folder.local and Path(folder.path(file)).is_dir():
            raise UserError(f"reference {folder.path(file)} cannot be written: it is a folder")
    source = image_sources.open_source(spec)
    return [
        ReferenceBuild(
            source,
            *place,
            name,
            weights,
            load_extractor(name, weights),
            score.reference_skip_unreadable,
        )
        for name, place in places.items()
        for weights in [weights_of(score, name)]
    ]


def make_references(
    makings: Sequence[ReferenceBuild],
    open_executor: Callable[[Folder], AbstractContextManager[Executor]],
) -> None:
    """Makes the files, from the parts that stand; opens an executor if some are missing.

    Raises UserError as workers do, and where another process makes the same file.
    """
    with ExitStack() as claims:
        for making in makings:
            parts = making.folder.within(layout.parts(making.file))
            making.folder.fence = claims.enter_context(output_lock(parts))
        orders = [making.missing() for making in makings]
        if any(orders):
            with open_executor(makings[0].folder) as executor:
                for making, missing in zip(makings, orders, strict=True):
                    _extract(making, missing, executor)
        for making in makings:
            about = making.finish()
            _say_made(making, about)
    for making in makings:
        making.folder.fence = None
        making.clear()


def prepare_reference(
    run: Run, name: str, extractor: Extractor, executor: Executor | None = None
) -> Reference | None:
    """What a run's pictures are compared with under an extractor, ``name`` in the config.

    An ``.npz`` is read. Of pictures, or of drawings, the run makes a file of its own, and reads it
    again while pictures and extractor stay. Without an executor it is made in this process. None
    where there is no reference, or a caption that cannot be drawn. Raises UserError.
    """
    where = reference_of(run.config.score, name)
    if where is None:
        return None
    if where != "drawn" and is_file(where):
        return load_reference(where, extractor)
    source = (
        image_sources.demo_images(run.folder, run.shards)
        if where == "drawn"
        else image_sources.open_source(where)
    )
    if source is None:
        return None
    file, weights = layout.reference(extractor.name), weights_of(run.config.score, name)
    skip = run.config.score.reference_skip_unreadable
    making = ReferenceBuild(source, run.folder, file, name, weights, extractor, skip)
    held = _held(making)
    if held is None:
        _extract(making, making.missing(), executor or LocalExecutor(run.config, run.folder))
        about = making.finish(making.identity)
        making.clear()
        if about["broken"]:
            _say_made(making, about)
        held = _held(making)
        assert held is not None  # it was just made
    return replace(held, name=source.name, sha256=held.about["sha256"])


def _say_made(making: ReferenceBuild, about: dict[str, Any]) -> None:
    """How many images a reference has, how many were left out, and the first of these."""
    left_out = ""
    if about["broken"]:
        first = one_line(about["broken_named"][0])
        left_out = f", {about['broken']:,} left out as broken or unreadable (first: {first})"
    console.info(
        f"{making.folder.path(making.file)}: {making.extractor.name} features of "
        f"{about['pictures']:,} pictures{left_out}"
    )


def _held(making: ReferenceBuild) -> Reference | None:
    """The file that stands, if it was made of the same."""
    content = making.folder.get(making.file)
    if content is None:
        return None
    try:
        held = parse_reference(
            content, making.source.name, making.extractor, making.folder.within(making.file).uri
        )
    except UserError:
        return None
    return held if held.about.get("identity") == making.identity else None


def _extract(making: ReferenceBuild, missing: list[ReferenceOrder], executor: Executor) -> None:
    tasks = [ReferenceTask(order) for order in missing]
    total = len(making.source)
    done = total - sum(len(order.part) for order in missing)
    progress = WorkCounter("reference", "pictures", total, done)
    for event in executor.run(Pool.of(tasks)):
        if isinstance(event, GiveUp | Stop):
            raise UserError(
                f"{event}; finished parts are kept. Fix: remove the cause and run the same command "
                "again"
            )
        if isinstance(event, PartExtracted):
            progress.add(event.images)
        else:
            progress.tick()
    progress.log()
