"""Error rows: finds and counts them, and prepares their retry."""

from collections.abc import Sequence

from tgate_batch.output import layout, parquet
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Finished, Run
from tgate_batch.storage import map_concurrently

ShardsWithErrors = dict[str, dict[int, tuple[str, ...]]]  # model -> shard -> arms with error rows
ShardFile = tuple[str, ShardPlan, str]  # (model, shard, arm)


def allowed(max_errors: int | float | None, images: int) -> float:
    """Returns how many of the images may fail under ``max_errors``; at least 1 for a fraction."""
    if max_errors is None:
        return images
    return max(1.0, max_errors * images) if isinstance(max_errors, float) else max_errors


def shards_with_errors(run: Run, finished: Finished) -> ShardsWithErrors:
    """Returns the finished shards with error rows, from the footers of their files."""
    files = [
        (model.name, shard, arm)
        for model in run.config.models
        for shard in run.shards
        for arm in run.config.arms
        if shard.index in finished[model.name, arm]
    ]
    failures: ShardsWithErrors = {model.name: {} for model in run.config.models}
    for (model, shard, arm), count in zip(files, _counts(run, files), strict=True):
        if count:
            failures[model][shard.index] = (*failures[model].get(shard.index, ()), arm)
    return failures


def count_errors(run: Run, files: Sequence[ShardFile]) -> int:
    """Returns the number of error rows in these files; a damaged file counts as 0."""
    return sum(_counts(run, files))


def _counts(run: Run, files: Sequence[ShardFile]) -> list[int]:
    def errors(one: ShardFile) -> int:
        model, shard, arm = one
        try:
            with parquet.open_table(run.folder, *run.pictures(model, arm, shard)) as file:
                return int(parquet.footer(file).get(layout.ERRORS_KEY, 0))
        except (*parquet.DAMAGE, ValueError):  # reading the file will report the damage
            return 0

    return map_concurrently(errors, files)


def forget_measurements(run: Run, failures: ShardsWithErrors) -> None:
    """Deletes the measurements and sums of these shards, because images will be added.

    If the baseline is among them, those of the other arms are deleted too: they compare with it.
    """
    outdated = {
        (model, arm, index)
        for model, shards in failures.items()
        for index, arms in shards.items()
        for arm in (run.config.arms if run.config.baseline in arms else arms)
    }
    if not outdated:
        return
    for parent in (layout.MEASURED, layout.FEATURES):
        for name in run.folder.names(parent, ".parquet"):
            file = layout.folder_and_shard(name)
            if file is not None and (*file[0].split("/")[-2:], file[1]) in outdated:
                run.folder.delete(name)
    for model, arm in {(model, arm) for model, arm, _ in outdated}:
        run.folder.delete_all(layout.sums_of(model, arm))
