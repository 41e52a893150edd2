"""Where a model's checkpoint lies, and loading it: safetensors only, and never remote code."""

import difflib
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tgate_batch.config import OWN_SCHEDULER, Model, ResolvedSampling
from tgate_batch.errors import UserError
from tgate_batch.metrics.weights import pickled_only
from tgate_batch.models.architecture import read_json
from tgate_batch.models.catalogue import entry
from tgate_batch.models.family import Entry

_HUB_SECONDS = 5.0  # to answer
_PLAIN = "give a checkpoint whose parts are classes of diffusers and transformers"


def checkpoint(model: Model) -> str:
    """Where the model is loaded from, a folder or a hub id.

    Raises UserError for a folder that is not there, that names code of its own, and whose weights
    are pickles.
    """
    path = model.path or entry(model.name).checkpoint
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    folder = Path(path).expanduser()
    if looks_local and not (folder / "model_index.json").is_file():
        raise UserError(
            f"models: {model.name}: "
            + (
                pickled_only(folder)
                or f"{path} is not a diffusers folder (it has no model_index.json)"
            )
        )
    if not folder.exists():
        return path
    if refused := _unsafe(folder, model):
        raise UserError(f"models: {model.name}: {refused}")
    return str(folder)


def _unsafe(folder: Path, model: Model) -> str | None:
    """Why a local checkpoint is not loaded; None: what it is made of is data alone."""
    if not (folder / "model_index.json").is_file():
        return None
    index = read_json(folder / "model_index.json")
    if not isinstance(index.get("_class_name", ""), str):
        return f"{folder} names a pipeline of its own code, which is never run; {_PLAIN}"
    given = {*entry(model.name).options} | ({"unet"} if replaced_unet(model) else set())
    for name, kind in index.items():
        if not isinstance(kind, list) or not all(kind) or name in given:
            continue
        library = str(kind[0])
        if not _is_known(library) or (folder / name / f"{library}.py").exists():
            return f"{folder} names code of its own for its {name}, which is never run; {_PLAIN}"
        if refused := pickled_only(folder / name):
            return refused
    return None


def _is_known(library: str) -> bool:
    """Whether a checkpoint may name it: diffusers (or a pipeline there), transformers, a plugin."""
    if library in ("diffusers", "transformers") or library in sys.modules:
        return True
    diffusers = find_spec("diffusers")
    places = [] if diffusers is None else diffusers.submodule_search_locations or []
    return library.isidentifier() and any(
        (Path(p) / "pipelines" / library).is_dir() for p in places
    )


def resolved_dtype(model: Model, device: str) -> str:
    """The model's dtype with ``auto`` resolved: half precision on a GPU, float32 on a CPU."""
    if model.dtype != "auto":
        return model.dtype
    return entry(model.name).half if device.startswith("cuda") else "float32"


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
    chosen = getattr(torch, dtype)
    common = {"dtype": chosen, "use_safetensors": True}
    options, unet, variant = dict(row.options), replaced_unet(model), variant_of(model, dtype)
    try:
        if unet is not None:
            options["unet"] = diffusers.UNet2DConditionModel.from_pretrained(unet, **common)
        if variant is not None:
            options["variant"] = variant
        if row.float32:
            common["dtype"] = {"default": chosen, **dict.fromkeys(row.float32, torch.float32)}
        pipeline = pipeline_class(row).from_pretrained(where, **common, **options)
    except Exception as error:  # diffusers raises nearly anything for a damaged folder
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"models: {model.name} cannot be loaded from {where}: {reason}") from None
    if sampling.scheduler != OWN_SCHEDULER:
        pipeline.scheduler = another_scheduler(sampling.scheduler, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def check_scheduler(name: str | None, key: str = "sampling.scheduler") -> None:
    """Raises UserError, naming the config's key, unless diffusers has such a scheduler.

    Imports nothing of it.
    """
    if name is None:
        return
    spec = find_spec("diffusers")
    assert spec is not None
    assert spec.origin is not None
    listing = (Path(spec.origin).parent / "schedulers" / "__init__.py").read_text(encoding="utf-8")
    known = sorted(set(re.findall(r'"(\w*Scheduler)"', listing)))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "e.g. DDIMScheduler, EulerDiscreteScheduler"
        raise UserError(f"{key}: diffusers has no scheduler {name!r}; {hint}")


def check_hub(model: Model) -> None:
    """Raises UserError where a hub's checkpoint is neither on this machine nor at the hub.

    The hub is asked for a few seconds at most.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    where = checkpoint(model)
    known = Path(where).exists() or isinstance(
        try_to_load_from_cache(where, "model_index.json"), str
    )
    if known:
        return
    told = f"models: {model.name}: {where} is not on this machine, and the hub"
    advice = "give models.path a folder, or fetch it where there is a network"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{told} is switched off (HF_HUB_OFFLINE); {advice}")
    try:
        HfApi().model_info(where, timeout=_HUB_SECONDS)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise UserError(
            f"{told} does not give it (status {status}); check the id, or log in for a gated model"
        ) from None
    except Exception as error:  # of the HTTP library that the hub's client has
        raise UserError(f"{told} cannot be reached ({type(error).__name__}); {advice}") from None


def another_scheduler(name: str, current: Any) -> Any:
    """A scheduler of this class with the settings of the current one."""
    import diffusers

    kind: Any = getattr(diffusers, name, None)
    if not hasattr(kind, "from_config") or not issubclass(kind, diffusers.SchedulerMixin):
        raise UserError(
            f"sampling.scheduler: diffusers has no scheduler {name!r}; e.g. DDIMScheduler, "
            "EulerDiscreteScheduler, DPMSolverMultistepScheduler"
        )
    return kind.from_config(current.config)
