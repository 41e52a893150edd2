"""What is logged at the start of a run: its size, its models, the prompts' columns, warnings."""

from collections.abc import Sized

from tgate_batch import console
from tgate_batch.output.config_warnings import config_warnings
from tgate_batch.output.run import Prepared
from tgate_batch.prompts import reader as prompts


def log_run(run: Prepared) -> None:
    """Logs the size of a run, what of its prompts is used, and warnings about its config."""
    images = run.images_per_arm * len(run.pairs())
    console.info(
        f"{run.prompts:,} prompts in {len(run.shards):,} shards, {_count(run.config.arms, 'arm')} "
        f"and {_count(run.config.models, 'model')}: {images:,} images -> {run.folder}",
        event="run",
        images=images,
    )
    log_models(run)
    columns = prompts.describe_columns(run.config.prompts, run.config.score.by)
    if columns.files > 1:
        console.info(f"prompts: {columns.files:,} files, the first {columns.first}")
    if columns.overrides:
        console.info(
            f"prompts: rows have their own {', '.join(columns.overrides)}: "
            f"{_count(run.batch_keys, 'kind')} of rows (prompts.columns lists the columns that "
            "count)"
        )
    if columns.unused:
        console.info(
            f"prompts: not used: column{'s' if len(columns.unused) != 1 else ''} "
            f"{', '.join(columns.unused)} (prompts.keep copies them to the output)",
            unused=columns.unused,
        )
    for warning in config_warnings(run.config):
        console.warning(warning)
    for line in run.failed:
        console.info(line)


def log_models(run: Prepared) -> None:
    """Logs how each model is sampled, and which layers of LoRAs do not fit."""
    for name, model in run.models.items():
        console.info(f"{name}: {model.summary_line()}", event="model", model=name)
        for line in model.partial_loras:
            console.warning(f"models: {name}: {line}; the others are left out")


def _count(items: Sized, noun: str) -> str:
    return f"{len(items):,} {noun}{'s' if len(items) != 1 else ''}"
