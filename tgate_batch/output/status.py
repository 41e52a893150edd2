"""The progress of a run, from its output folder."""

from typing import Any

from tgate_batch.output import layout, lock
from tgate_batch.output.error_rows import count_errors
from tgate_batch.output.run import damaged_files, finished, load_run

_MOST_OPENED = 2000  # files that are opened without `errors`


def status(output: str, errors: bool = False) -> dict[str, Any]:
    """Returns ``{"output", "images", "done", "failed", "arms": [...], "worked_on_by"}``.

    ``done`` is the number of images, ``failed`` that of error rows. Error rows are counted in the
    files' footers, for more than 2,000 files only with ``errors``; otherwise ``failed`` is None,
    and ``done`` includes them. ``worked_on_by`` is the lock of a running driver, as far as it can
    be determined. Raises UserError if there is no run.

    Example::

        status("out/demo")["done"]
    """
    run = load_run(output)
    done, damaged = finished(run), damaged_files(run.folder)
    counts = errors or sum(map(len, done.values())) <= _MOST_OPENED
    prompts = {shard.index: shard.prompts for shard in run.shards}
    arms = []
    for model, name, _ in run.pairs():
        indices = done[model.name, name]
        rows = sum(prompts.get(index, 0) for index in indices)
        files = [(model.name, shard, name) for shard in run.shards if shard.index in indices]
        failed = count_errors(run, files) if counts else None
        folder = layout.images(model.name, name) + "/"
        arms.append(
            {
                "model": model.name,
                "arm": name,
                "images": run.images_per_arm,
                "done": rows * run.config.sampling.images_per_prompt - (failed or 0),
                "shards": len(run.shards),
                "files": len(indices),
                "errors": failed,
                "damaged": sum(file.startswith(folder) for file in damaged),
            }
        )
    return {
        "output": str(run.folder),
        "images": sum(arm["images"] for arm in arms),
        "done": sum(arm["done"] for arm in arms),
        "failed": sum(arm["errors"] for arm in arms) if counts else None,
        "arms": arms,
        "worked_on_by": lock.lock_holder(run.folder),
    }
