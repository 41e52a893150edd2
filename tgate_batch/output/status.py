"""How far a run is, from a listing of its output."""

from typing import Any

from tgate_batch.output import claim, layout
from tgate_batch.output.failed import count_errors
from tgate_batch.output.run import Run, damaged, finished, load_run


def status(output: str, errors: bool = False) -> dict[str, Any]:
    """``{"output", "images", "done", "arms": [...], "worked_on_by"}``; ``done`` counts error rows.

    ``errors``: count those too, which opens every file. ``worked_on_by`` is the claim of a run that
    is at work, as far as it can be told from here. Raises UserError where there is no run.
    """
    run = load_run(output)
    held, harmed = finished(run), damaged(run.folder)
    prompts = {shard.index: shard.prompts for shard in run.shards}
    arms = [
        {
            "model": model.name,
            "arm": name,
            "images": run.images_per_arm,
            "done": sum(prompts.get(index, 0) for index in held[model.name, name])
            * run.config.sampling.images_per_prompt,
            "shards": len(run.shards),
            "files": len(held[model.name, name]),
            "errors": _errors(run, model.name, name, held) if errors else None,
            "damaged": sum(
                file.startswith(layout.images(model.name, name) + "/") for file in harmed
            ),
        }
        for model, name, _ in run.pairs()
    ]
    return {
        "output": str(run.folder),
        "images": sum(arm["images"] for arm in arms),
        "done": sum(arm["done"] for arm in arms),
        "arms": arms,
        "worked_on_by": claim.holder(run.folder),
    }


def _errors(run: Run, model: str, arm: str, held: Any) -> int:
    return count_errors(run, [(model, s, arm) for s in run.shards if s.index in held[model, arm]])
