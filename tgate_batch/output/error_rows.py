"""Error rows that a later run draws again: where they are, and what must go before."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tgate_batch.output import layout, parquet
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Finished, Run

_THREADS = 16  # a footer is a request or two, which are mostly waiting

ShardsWithErrors = dict[
    str, dict[int, tuple[str, ...]]
]  # model -> shard -> the arms with error rows


def allowed(max_errors: int | float | None, images: int) -> float:
    """How many of so many images may fail under ``max_errors``; of a share at least one."""
    if max_errors is None:
        return images
    return max(1.0, max_errors * images) if isinstance(max_errors, float) else max_errors


def shards_with_errors(run: Run, finished: Finished) -> ShardsWithErrors:
    """The finished shards that hold error rows, as their files' footers say."""
    files = [
        (model.name, shard, arm)
        for model in run.config.models
        for shard in run.shards
        for arm in run.config.arms
        if shard.index in finished[model.name, arm]
    ]
    found: ShardsWithErrors = {model.name: {} for model in run.config.models}
    for (model, shard, arm), count in zip(files, _counted(run, files), strict=True):
        if count:
            found[model][shard.index] = (*found[model].get(shard.index, ()), arm)
    return found


def count_errors(run: Run, files: Sequence[tuple[str, ShardPlan, str]]) -> int:
    """How many error rows these files, (model, shard, arm), hold together."""
    return sum(_counted(run, files))


def _counted(run: Run, files: Sequence[tuple[str, ShardPlan, str]]) -> list[int]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda file: _errors(run, *file), files))


def _errors(run: Run, model: str, shard: ShardPlan, arm: str) -> int:
    """How many rows of a file are errors; 0 where it is damaged, which a reader will tell."""
    try:
        with parquet.open_table(run.folder, *run.pictures(model, arm, shard)) as file:
            return int(parquet.footer(file).get(layout.ERRORS_KEY, 0))
    except (*parquet.DAMAGE, ValueError):
        return 0


def forget_measurements(run: Run, failures: ShardsWithErrors) -> None:
    """Deletes what was measured of these shards, and what it adds up to: pictures will join.

    Where the baseline's are, the other arms' go too, which were compared with it.
    """
    gone = set(_measurements(run, failures))
    if not gone:
        return
    for place in (layout.MEASURED, layout.FEATURES):
        for name in run.folder.names(place, ".parquet"):
            held = layout.folder_and_shard(name)
            if held is not None and (*held[0].split("/")[-2:], held[1]) in gone:
                run.folder.delete(name)
    for model, arm in {(model, arm) for model, arm, _ in gone}:
        run.folder.delete_all(layout.sums_of(model, arm))


def _measurements(run: Run, failures: ShardsWithErrors) -> Iterator[tuple[str, str, int]]:
    """(model, arm, shard) of which no measurement holds any more."""
    for model, shards in failures.items():
        for index, arms in shards.items():
            changed = run.config.arms if run.config.baseline in arms else arms
            yield from ((model, arm, index) for arm in changed)
