"""How far a run is, from its output."""

from typing import Any

from tgate_batch.output import layout, lock
from tgate_batch.output.error_rows import count_errors
from tgate_batch.output.run import Run, damaged_files, finished, load_run

_OPENED = 2000  # files that are opened unasked


def status(output: str, errors: bool = False) -> dict[str, Any]:
    """``{"output", "images", "done", "failed", "arms": [...], "worked_on_by"}``.

    ``done`` are images, ``failed`` error rows. These are counted from the files' footers; of many
    files only with ``errors``: else ``failed`` is None, and ``done`` counts them too.
    ``worked_on_by`` is the claim of a run that is at work, as far as it can be told from here.
    Raises UserError where there is no run.
    """
    run = load_run(output)
    held, harmed = finished(run), damaged_files(run.folder)
    counts = errors or sum(map(len, held.values())) <= _OPENED
    prompts = {shard.index: shard.prompts for shard in run.shards}
    arms = []
    for model, name, _ in run.pairs():
        rows = sum(prompts.get(index, 0) for index in held[model.name, name])
        failed = _errors(run, model.name, name, held) if counts else None
        arms.append(
            {
                "model": model.name,
                "arm": name,
                "images": run.images_per_arm,
                "done": rows * run.config.sampling.images_per_prompt - (failed or 0),
                "shards": len(run.shards),
                "files": len(held[model.name, name]),
                "errors": failed,
                "damaged": sum(
                    file.startswith(layout.images(model.name, name) + "/") for file in harmed
                ),
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


def _errors(run: Run, model: str, arm: str, held: Any) -> int:
    return count_errors(run, [(model, s, arm) for s in run.shards if s.index in held[model, arm]])
