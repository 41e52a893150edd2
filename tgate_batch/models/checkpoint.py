"""Locates and loads a model's checkpoint: safetensors only, never remote code."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tgate_batch.config import OWN_SCHEDULER, Model, ResolvedSampling, Sampling
from tgate_batch.errors import UserError
from tgate_batch.metrics.part_files import LINKS, PartFiles, laid_out
from tgate_batch.metrics.weights import pickled_only
from tgate_batch.models import hub, loras, schedulers, single_file
from tgate_batch.models.architecture import class_names, read_json
from tgate_batch.models.family import pipeline_class
from tgate_batch.models.files import ModelFiles, list_model_files, replacement_folders, variant_of
from tgate_batch.models.resolve import (
    INDEX,
    ResolvedModel,
    part_class,
    part_folder,
    refusal,
    resolve_model,
    resolve_sampling,
)

_LATENT_CHANNELS = 4  # of Stable Diffusion's VAE
_OTHER_KINDS = {  # channels beyond those of the latents
    5: "an inpainting model",
    4: "a model that edits images",
    1: "a model that takes a depth map",
}
_PLAIN = "give a checkpoint whose parts are classes of diffusers and transformers"


def check(model: Model, sampling: Sampling) -> ResolvedSampling:
    """Checks all that needs no weights; returns the resolved sampling.

    Raises UserError if the checkpoint is missing or unsupported (``locate_checkpoint``), or if the
    scheduler, a LoRA or a replaced component cannot be used.
    """
    resolved = resolve_model(model)
    locate_checkpoint(model, resolved)
    key = f"models: {model.name}"
    place = model.path if model.path is not None else resolved.row.checkpoint
    if model.revision is not None and (model.path is None or hub.is_local(place)):
        raise UserError(f"{key}: revision {model.revision!r} is of a hub id, and path is none")
    if resolved.file is not None and not resolved.family.single_files:
        raise UserError(
            f"{key}: diffusers loads no {resolved.row.pipeline} from a single file; give its folder"
        )
    if model.variant is not None and resolved.file is not None:
        raise UserError(
            f"{key}: variant {model.variant!r} is of a folder or hub id, and {place} is a single "
            "file; leave it out"
        )
    if model.config is not None and resolved.file is None:
        raise UserError(f"{key}: config is of a single file, and {place} is none; leave it out")
    schedulers.check_name(model.scheduler, f"{key}: scheduler")
    _check_parts(model, resolved)
    _check_channels(model, resolved)
    loras.check(model, resolved.family)
    how = resolve_sampling(model, sampling, resolved)
    schedulers.check_arguments(model, resolved, how)
    return how


def locate_checkpoint(model: Model, resolved: ResolvedModel | None = None) -> str:
    """Where the model is loaded from: a folder, a single file or a hub id.

    Raises UserError for a folder that is not there, that names code of its own, and whose weights
    are pickles.
    """
    resolved = resolved or resolve_model(model)
    path = str(resolved.file or resolved.row.checkpoint)
    is_folder = resolved.file is None and hub.is_local(path)
    if is_folder and not (Path(path).expanduser() / INDEX).is_file():
        raise UserError(f"models: {model.name}: {refusal(path)}")
    if resolved.folder is not None and (refused := _unsafe(resolved.folder, model, resolved)):
        raise UserError(f"models: {model.name}: {refused}")
    return str(Path(path).expanduser()) if is_folder else path


def _check_parts(model: Model, resolved: ResolvedModel) -> None:
    """Raises UserError for a replaced U-Net or VAE that cannot take the checkpoint's place."""
    key = f"models: {model.name}"
    if model.unet is not None and resolved.family.denoiser != "unet":
        raise UserError(
            f"{key}: unet: a {resolved.row.pipeline} has a {resolved.family.denoiser} and no "
            "U-Net. Fix: remove unet"
        )
    for part in ("unet", "vae"):
        if getattr(model, part) is None:
            continue
        folder, kind = part_folder(model, part), part_class(model, part)
        if refused := pickled_only(folder):
            raise UserError(f"{key}: {part}: {refused}")
        own = None
        if resolved.folder is not None and (resolved.folder / INDEX).is_file():
            own = (read_json(resolved.folder / INDEX).get(part) or [None, None])[1]
        if part == "unet" and own not in (None, kind):
            raise UserError(
                f"{key}: {part}: {getattr(model, part)} is a {kind}, and the checkpoint has a "
                f"{own}; give one of that class"
            )
        if kind not in class_names("models"):
            raise UserError(
                f"{key}: {part}: {getattr(model, part)} is a {kind}, which is no model of "
                f"diffusers; give a {part} that its save_pretrained wrote"
            )


def _check_channels(model: Model, resolved: ResolvedModel) -> None:
    """Raises UserError for a U-Net that needs more than noise, as that of an inpainting model."""
    if (
        resolved.family.denoiser != "unet"
        or resolved.family.draws != "picture"
        or resolved.folder is None
    ):
        return
    place, channels = resolved.file or resolved.folder, None
    vae = part_folder(model, "vae") if model.vae is not None else resolved.folder / "vae"
    latents = read_json(vae / "config.json").get("latent_channels", _LATENT_CHANNELS)
    if model.unet is not None:
        place = part_folder(model, "unet")
        channels = read_json(place / "config.json").get("in_channels")
    elif resolved.file is not None:
        channels = single_file.unet_channels(single_file.header_of(resolved.file))
    elif resolved.row.unet is None and (resolved.folder / "unet" / "config.json").is_file():
        channels = read_json(resolved.folder / "unet" / "config.json").get("in_channels")
    if channels not in (None, latents):
        kind = _OTHER_KINDS.get(channels - latents, "another kind of model")
        raise UserError(
            f"models: {model.name}: {place} is {kind}: its U-Net takes {channels} channels, and "
            f"its latents have {latents}. Fix: give a text-to-image checkpoint"
        )


def _unsafe(folder: Path, model: Model, resolved: ResolvedModel) -> str | None:
    """Returns why a local checkpoint is refused; None if it has no code and no pickles."""
    if not (folder / INDEX).is_file():
        return None
    index = read_json(folder / INDEX)
    if not isinstance(index.get("_class_name", ""), str):
        return f"{folder} names a pipeline of its own code, which is never run; {_PLAIN}"
    given = {*resolved.row.options} | ({"unet"} if resolved.row.unet else set())
    given |= {"vae"} if model.vae else set()
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
    return resolve_model(model).row.half if device.startswith("cuda") else "float32"


def load_pipeline(
    model: Model, sampling: ResolvedSampling, device: str, dtype: str | None = None
) -> Any:
    """Loads the pipeline onto ``device``; ``dtype`` None: the model's.

    Raises UserError where the checkpoint cannot be had or holds something else.
    """
    import torch

    resolved = resolve_model(model)
    where = locate_checkpoint(model, resolved)
    dtype = dtype or resolved_dtype(model, device)
    chosen = getattr(torch, dtype)
    try:
        read = list_model_files(model, dtype) or _fetched(model, resolved, dtype)
        pipeline = _read(read, resolved, chosen).to(device)
    except UserError:
        raise
    except Exception as error:  # diffusers raises nearly anything for a damaged folder
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = re.sub(rf"\S*/{LINKS}\w+", where, reason)
        if "meta tensor" in reason:
            reason = "weights are missing that its configurations require"
        raise UserError(f"models: {model.name} cannot be loaded from {where}: {reason}") from None
    if sampling.scheduler != OWN_SCHEDULER or sampling.scheduler_arguments:
        pipeline.scheduler = schedulers.build_scheduler(
            sampling.scheduler, pipeline.scheduler, sampling.scheduler_arguments
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if model.loras:
        loras.add(pipeline, resolved.family.denoiser, model)
    return pipeline


def _read(read: ModelFiles, resolved: ResolvedModel, dtype: Any) -> Any:
    """The pipeline from the listed files, which are all that the loaders are given."""
    import torch

    row = resolved.row
    options = dict(row.options)
    for part, its in read.replaced.items():
        wanted = torch.float32 if part in row.float32 else dtype
        options[part] = _part(its, wanted)
    with laid_out(read.links()) as folder:
        if read.single is not None:
            return pipeline_class(row).from_single_file(
                str(read.single), config=str(folder), dtype=dtype, local_files_only=True, **options
            )
        kinds = {"default": dtype, **dict.fromkeys(row.float32, torch.float32)}
        return pipeline_class(row).from_pretrained(
            str(folder), dtype=kinds if row.float32 else dtype, use_safetensors=True, **options
        )


def _part(read: PartFiles, dtype: Any) -> Any:
    """A network of diffusers from the listed files, of the class that its config.json names."""
    import diffusers

    links = read.links()
    kind = read_json(links["config.json"]).get("_class_name")
    if kind not in class_names("models"):
        raise UserError(f"{links['config.json']} is of a {kind}, which is no model of diffusers")
    with laid_out(links) as folder:
        network = getattr(diffusers, kind)
        return network.from_pretrained(str(folder), dtype=dtype, use_safetensors=True)


def _fetched(model: Model, resolved: ResolvedModel, dtype: str) -> ModelFiles:
    """The files of a model that is at the hub, fetched."""
    places = replacement_folders(model, resolved)
    for part, place in places.items():
        if not hub.is_local(place):
            hub.fetched(place, None, f"models: {model.name}: {part}", hub.NETWORK)
    loras.fetch(model)
    if resolved.file is None and not hub.is_local(resolved.row.checkpoint):
        pipeline_class(resolved.row).download(
            resolved.row.checkpoint,
            revision=model.revision,
            variant=variant_of(model, dtype),
            use_safetensors=True,
            **resolved.row.options,
            **dict.fromkeys(places),
        )
    read = list_model_files(model, dtype, must=True)
    if read is None:
        raise UserError(f"models: {model.name} cannot be fetched. Fix: give a local folder")
    return read


def check_hub(model: Model) -> None:
    """Raises UserError where a hub's checkpoint is neither on this machine nor at the hub.

    The hub is asked for a few seconds at most.
    """
    where = locate_checkpoint(model)
    if Path(where).exists() or hub.cached(where, INDEX, model.revision) is not None:
        return
    hub.check(where, model.revision, f"models: {model.name}")
