"""Where a model's checkpoint lies, and loading it: safetensors only, and never remote code."""

from importlib import import_module
from pathlib import Path
from typing import Any

from tgate_batch.config import OWN_SCHEDULER, Model, ResolvedSampling
from tgate_batch.errors import UserError
from tgate_batch.models.catalogue import entry
from tgate_batch.models.family import Entry


def checkpoint(model: Model) -> str:
    """Where the model is loaded from, a folder or a hub id.

    Raises UserError for a folder that is not there.
    """
    path = model.path or entry(model.name).checkpoint
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not (Path(path).expanduser() / "model_index.json").is_file():
        raise UserError(
            f"models: {model.name}: {path} is not a diffusers folder (it has no model_index.json)"
        )
    return str(Path(path).expanduser()) if Path(path).expanduser().exists() else path


def resolved_dtype(model: Model, device: str) -> str:
    """The model's dtype with ``auto`` resolved: float16 on a GPU, float32 on a CPU."""
    if model.dtype != "auto":
        return model.dtype
    return "float16" if device.startswith("cuda") else "float32"


def variant_of(model: Model, dtype: str) -> str | None:
    """Which of the hub's files are read, e.g. the half-precision ones; None: the plain ones."""
    return entry(model.name).variant if model.path is None and dtype == "float16" else None


def replaced_unet(model: Model) -> str | None:
    """Hub id of the denoiser that is loaded in place of the checkpoint's; None: its own."""
    return entry(model.name).unet if model.path is None else None


def pipeline_class(row: Entry) -> Any:
    """The class that the row names, of diffusers unless the name is dotted."""
    module, _, kind = row.pipeline.rpartition(".")
    return getattr(import_module(module or "diffusers"), kind)


def load(model: Model, sampling: ResolvedSampling, device: str, dtype: str | None = None) -> Any:
    """Loads the pipeline onto ``device``; ``dtype`` None: the model's.

    Raises UserError where the checkpoint cannot be had or holds something else.
    """
    import diffusers
    import torch

    row, where = entry(model.name), checkpoint(model)
    dtype = dtype or resolved_dtype(model, device)
    common = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    options, unet, variant = dict(row.options), replaced_unet(model), variant_of(model, dtype)
    try:
        if unet is not None:
            options["unet"] = diffusers.UNet2DConditionModel.from_pretrained(unet, **common)
        if variant is not None:
            options["variant"] = variant
        pipeline = pipeline_class(row).from_pretrained(where, **common, **options)
    except Exception as error:  # diffusers raises nearly anything for a damaged folder
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"models: {model.name} cannot be loaded from {where}: {reason}") from None
    if sampling.scheduler != OWN_SCHEDULER:
        pipeline.scheduler = _scheduler(sampling.scheduler, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _scheduler(name: str, current: Any) -> Any:
    import diffusers

    kind: Any = getattr(diffusers, name, None)
    if not hasattr(kind, "from_config") or not issubclass(kind, diffusers.SchedulerMixin):
        raise UserError(
            f"sampling.scheduler: diffusers has no scheduler {name!r}; e.g. DDIMScheduler, "
            "EulerDiscreteScheduler, DPMSolverMultistepScheduler"
        )
    return kind.from_config(current.config)
