"""Makes references on an executor's workers, as a command or when scoring needs one."""

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
    """Returns the reference files to make from the images in ``spec``, one for each extractor.

    ``to`` replaces ``score.reference``. Writes nothing. Raises UserError if the file cannot be
    written or is no ``.npz``, if several extractors share one file, and as
    ``image_sources.open_source`` does.
    """
    score, path = config.score, to or config.score.reference
    if path is None:
        raise UserError("score.reference is missing. Fix: set it, or give --to FILE.npz")
    if not is_file(path):
        raise UserError(
            f"a reference must be an .npz file, and {without_credentials(path)} is not. Fix: give "
            "--to FILE.npz"
        )
    if len(score.extractor) > 1 and "{extractor}" not in path:
        raise UserError(
            f"{without_credentials(path)} would be the file of {len(score.extractor)} extractors. "
            "Fix: put {extractor} into its name"
        )
    for name in score.extractor:
        check_extractor(name, weights_of(score, name))
    files = {name: Folder.of_file(with_extractor_name(path, name)) for name in score.extractor}
    for folder, file in files.values():
        folder.check_writable()
        if folder.local and Path(folder.path(file)).is_dir():
            raise UserError(
                f"reference {folder.path(file)} cannot be written: it is a folder. Fix: give the "
                "name of a file"
            )
    source = image_sources.open_source(spec)
    builds = []
    for name, (folder, file) in files.items():
        weights = weights_of(score, name)
        extractor = load_extractor(name, weights)
        skip = score.reference_skip_unreadable
        builds.append(ReferenceBuild(source, folder, file, name, weights, extractor, skip))
    return builds


def make_references(
    builds: Sequence[ReferenceBuild],
    open_executor: Callable[[Folder], AbstractContextManager[Executor]],
) -> None:
    """Makes the files from their parts; opens an executor if some parts are missing.

    Raises UserError as workers do, and if another process makes the same file.
    """
    with ExitStack() as locks:
        for build in builds:
            parts = build.folder.within(layout.parts(build.file))
            build.folder.fence = locks.enter_context(output_lock(parts))
        orders = [build.missing() for build in builds]
        if any(orders):
            with open_executor(builds[0].folder) as executor:
                for build, missing in zip(builds, orders, strict=True):
                    _extract(build, missing, executor)
        for build in builds:
            _log_finished(build, build.finish())
    for build in builds:
        build.folder.fence = None
        build.clear()


def prepare_reference(
    run: Run, name: str, extractor: Extractor, executor: Executor | None = None
) -> Reference | None:
    """Returns the reference that a run's images are compared with under an extractor.

    ``name``: the extractor's name in the config. An ``.npz`` is read. From images, or drawings, the
    run makes its own file, which is reused while images and extractor are the same. Without an
    executor it is made in this process. None if there is no reference, or a caption that cannot be
    drawn. Raises UserError.
    """
    path = reference_of(run.config.score, name)
    if path is None:
        return None
    if path != "drawn" and is_file(path):
        return load_reference(path, extractor)
    source = (
        image_sources.demo_images(run.folder, run.shards)
        if path == "drawn"
        else image_sources.open_source(path)
    )
    if source is None:
        return None
    file, weights = layout.reference(extractor.name), weights_of(run.config.score, name)
    skip = run.config.score.reference_skip_unreadable
    build = ReferenceBuild(source, run.folder, file, name, weights, extractor, skip)
    reference = _read(build)
    if reference is None:
        _extract(build, build.missing(), executor or LocalExecutor(run.config, run.folder))
        about = build.finish(build.identity)
        build.clear()
        if about["broken"]:
            _log_finished(build, about)
        reference = _read(build)
        assert reference is not None  # it was just made
    return replace(reference, name=source.name, sha256=reference.about["sha256"])


def _log_finished(build: ReferenceBuild, about: dict[str, Any]) -> None:
    """Logs how many images a reference has, how many were skipped, and the first of those."""
    skipped = ""
    if about["broken"]:
        first = one_line(about["broken_named"][0])
        skipped = f", {about['broken']:,} skipped as broken or unreadable (first: {first})"
    console.info(
        f"{build.folder.path(build.file)}: {build.extractor.name} features of "
        f"{about['pictures']:,} images{skipped}"
    )


def _read(build: ReferenceBuild) -> Reference | None:
    """Reads the stored file; None if there is none or it was made from something else."""
    content = build.folder.get(build.file)
    if content is None:
        return None
    try:
        reference = parse_reference(
            content, build.source.name, build.extractor, build.folder.within(build.file).uri
        )
    except UserError:
        return None
    return reference if reference.about.get("identity") == build.identity else None


def _extract(build: ReferenceBuild, missing: list[ReferenceOrder], executor: Executor) -> None:
    """Extracts the missing parts; raises UserError if one of them fails."""
    total = len(build.source)
    done = total - sum(len(order.part) for order in missing)
    progress = WorkCounter("reference", "images", total, done)
    for event in executor.run(Pool.of([ReferenceTask(order) for order in missing])):
        if isinstance(event, GiveUp | Stop):
            raise UserError(
                f"{event}; finished parts are kept. Fix: remove the cause and rerun the same "
                "command to continue"
            )
        if isinstance(event, PartExtracted):
            progress.add(event.images)
        else:
            progress.tick()
    progress.log()
