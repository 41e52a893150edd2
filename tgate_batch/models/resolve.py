"""Resolves a model of a config to its family, its documented settings and its files.

A catalogue name means its row. Any other name means the checkpoint at its ``path``: the class in
``model_index.json`` gives the family, and the family's row of that class gives the settings.
Nothing here loads weights, torch or diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tgate_batch.config import Model, ResolvedSampling, Sampling
from tgate_batch.errors import UserError, one_line
from tgate_batch.metrics.weights import pickled_only
from tgate_batch.models import catalogue, hub, single_file
from tgate_batch.models.architecture import (
    Architecture,
    ComponentSpec,
    latent_scale,
    read_architecture,
    read_json,
)
from tgate_batch.models.family import Entry, Family
from tgate_batch.models.generic import family as generic

INDEX = "model_index.json"
_LCM_STEPS, _LCM_GUIDANCE = 4, 8.0  # of distilled models, as their cards have them


@dataclass(frozen=True)
class ResolvedModel:
    """A model's row under its own name, its family, and where its files are.

    ``like``: the catalogue's name of the row. ``folder`` has the configurations: the checkpoint's
    folder, or the hub's snapshot in the local cache; None: not on this machine yet. ``file`` is a
    single file with all weights. ``says``: arguments of a scheduler that the file itself names and
    its configurations do not; ``unclear``: what it says that the config has to decide.
    """

    row: Entry
    family: Family
    like: str
    folder: Path | None
    file: Path | None = None
    says: Mapping[str, Any] = field(default_factory=dict)
    unclear: str | None = None


def resolve_model(model: Model) -> ResolvedModel:
    """Resolves the model; may download small files of a hub id, for a few seconds.

    Raises UserError for an unknown name or pipeline class, and for a path that does not exist.
    """
    resolved = _opened(model)
    if resolved.file is None:
        return resolved
    own = own_scheduler(resolved)
    own_settings: dict[str, Any] = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    own_settings |= {} if own is None else own[1]
    try:
        in_file = single_file.scheduler_settings(single_file.header_of(resolved.file))
    except ValueError as error:
        return replace(resolved, unclear=str(error))
    return replace(
        resolved,
        says={key: in_file[key] for key in in_file if own_settings.get(key) != in_file[key]},
    )


def _opened(model: Model) -> ResolvedModel:
    if model.path is None:
        row = catalogue.entry(model.name)
        row = replace(row, unet=model.unet or row.unet)
        return ResolvedModel(
            row, catalogue.family_of(model.name), row.name, _at_hand(row.checkpoint)
        )
    known = catalogue.CATALOGUE.get(model.name)
    if model.path.endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise UserError(
            f"{_key(model)}: {model.path} is a pickle, which may run code when it is loaded. Fix: "
            "if you trust it, convert it to .safetensors and give that file"
        )
    file = Path(model.path).expanduser() if model.path.endswith(".safetensors") else None
    place, revision = model.path, model.revision
    if file is not None:
        place, revision = _configurations(model, file, known), None
    key = _key(model) if file is None else f"{_key(model)}: config of {file.name}"
    folder = _folder(place, revision, key, must=known is None or file is not None)
    if known is None:
        assert folder is not None
        return _by_class(model, folder, file)
    if folder is not None and (kind := _class(folder)) not in (None, _plain(known.pipeline)):
        raise UserError(
            f"{_key(model)}: {place} is a {kind}, and {model.name} of the catalogue is a "
            f"{_plain(known.pipeline)}; give it a name of its own"
        )
    row = _placed(known, model)
    return ResolvedModel(row, catalogue.family_of(model.name), known.name, folder, file)


def resolve_sampling(
    model: Model, sampling: Sampling, resolved: ResolvedModel | None = None
) -> ResolvedSampling:
    """The sampling with the model's documented setting wherever the config leaves it open."""
    resolved = resolved or resolve_model(model)
    given = sampling
    if model.scheduler is not None:
        given = sampling.model_copy(update={"scheduler": model.scheduler})
    documented = catalogue.documented_sampling(resolved.row, given)
    arguments = {**resolved.says, **documented.scheduler_arguments}
    if resolved.unclear is not None and "prediction_type" not in arguments:
        raise UserError(
            f"{_key(model)}: {resolved.file}: {resolved.unclear}, which is not applied "
            "automatically. Fix: give a scheduler with its prediction_type, as scheduler: "
            "{class: own, prediction_type: v_prediction}"
        )
    return documented.model_copy(update={"scheduler_arguments": arguments})


def architecture_of(resolved: ResolvedModel, model: Model) -> Architecture:
    """The networks of the model, from its files if they are here, else from the catalogue's row.

    Raises UserError where neither is at hand.
    """
    folder = resolved.folder
    if model.path is not None and resolved.file is None and hub.is_local(model.path):
        folder = Path(model.path).expanduser()
    elif folder is not None and not _has_configurations(folder):
        folder = None  # a snapshot that is not whole
    if resolved.row.architecture is not None and (model.path is None or folder is None):
        architecture = resolved.row.architecture
    elif folder is not None:
        architecture = read_architecture(folder, partial(resolved.family.tokens, resolved.row))
    else:
        raise UserError(
            f"the architecture of {model.name!r} is unknown without its files. Fix: give a local "
            "checkpoint folder (models: {name, path})"
        )
    if model.unet is not None:
        architecture = replace(architecture, denoiser=_part(model, "unet", model.unet))
    if model.vae is not None:
        architecture = replace(architecture, vae=_part(model, "vae", model.vae))
    return architecture


def mixes_guidance(model: Model) -> bool:
    """Whether rows of differing guidance may share a batch, as far as is known without weights."""
    resolved = resolve_model(model)
    if not resolved.family.mixes_guidance:
        return False
    try:
        config = architecture_of(resolved, model).denoiser.config
    except UserError:  # not here yet, and not in the catalogue
        config = {}
    return config.get("time_cond_proj_dim") is None


def refusal(path: str) -> str:
    """Why a local path without ``model_index.json`` is refused."""
    return (
        pickled_only(Path(path).expanduser())
        or f"{path} is not a diffusers folder (it has no {INDEX})"
    )


def part_folder(model: Model, part: str) -> Path:
    """The folder or snapshot of the ``unet`` or ``vae`` that replaces the checkpoint's."""
    given, key = getattr(model, part), f"models: {model.name}: {part}"
    if hub.is_local(given):
        folder = Path(given).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{key}: {given} has no config.json; give the folder of the {part} itself"
            )
        return folder
    return hub.cached(given, "config.json") or hub.fetched(given, None, key, ("config.json",))


def part_class(model: Model, part: str) -> str:
    """The class of the replacement, of diffusers."""
    folder = part_folder(model, part)
    kind = read_json(folder / "config.json").get("_class_name")
    if not isinstance(kind, str):
        raise UserError(
            f"models: {model.name}: {part}: {folder / 'config.json'} names no class; give a {part} "
            "as diffusers' save_pretrained writes it"
        )
    return kind


def own_scheduler(resolved: ResolvedModel) -> tuple[str, Mapping[str, Any]] | None:
    """The class and the settings of the checkpoint's own scheduler; None: not at hand."""
    if resolved.folder is None or not (resolved.folder / INDEX).is_file():
        return None
    file = resolved.folder / "scheduler" / "scheduler_config.json"
    named = read_json(resolved.folder / INDEX).get("scheduler")
    if not file.is_file() or not named or not isinstance(named[1], str):
        return None
    return named[1], read_json(file)


def _key(model: Model) -> str:
    return f"models: {model.name}"


def _plain(pipeline: str) -> str:
    """A class without its module."""
    return pipeline.rpartition(".")[2]


def _placed(row: Entry, model: Model) -> Entry:
    """The row for a checkpoint of one's own: it brings its scheduler, U-Net and licence."""
    assert model.path is not None
    return replace(
        row,
        name=model.name,
        checkpoint=model.path,
        scheduler=None,
        variant=None,
        unet=model.unet,
        license=None,
    )


def _at_hand(checkpoint: str) -> Path | None:
    """The folder of a row's checkpoint, or its snapshot in the cache."""
    return Path(checkpoint) if Path(checkpoint).is_dir() else hub.cached(checkpoint, INDEX)


def _configurations(model: Model, file: Path, known: Entry | None) -> str:
    """Where the configurations of a single file are; raises UserError where nobody can tell."""
    if not file.is_file():
        raise UserError(f"{_key(model)}: {model.path} is not there")
    try:
        keys = single_file.keys_of(file)
    except ValueError as error:
        raise UserError(f"{_key(model)}: {error}; give a whole checkpoint") from None
    lacks = single_file.missing(keys, model.unet is not None, model.vae is not None)
    if lacks is not None:
        raise UserError(
            f"{_key(model)}: {file} has no {lacks} in the original layout (keys such as "
            f"{one_line(keys[0] if keys else 'none', 60)}); give a whole checkpoint, or the parts "
            "that it has as models.unet and models.vae of one"
        )
    if model.config is not None:
        return model.config
    if known is not None:
        return known.checkpoint
    kind = single_file.kind_of(keys)
    if kind is None:
        raise UserError(
            f"{_key(model)}: the kind of {file} is unknown. Fix: set models.config to the "
            "folder of a pipeline of its kind"
        )
    return catalogue.entry(kind).checkpoint


def _folder(place: str, revision: str | None, key: str, must: bool) -> Path | None:
    """The folder of a place; None for a hub id that is not here, unless it ``must`` be."""
    if hub.is_local(place):
        folder = Path(place).expanduser()
        if (folder / INDEX).is_file():
            return folder
        if must:
            raise UserError(f"{key}: {refusal(place)}")
        return None
    snapshot = hub.cached(place, INDEX, revision)
    if not must or (snapshot is not None and _has_configurations(snapshot)):
        return snapshot
    return hub.fetched(place, revision, key)


def _has_configurations(folder: Path) -> bool:
    """Whether the denoiser and the VAE of a pipeline are described there."""
    parts = [folder / part / "config.json" for part in ("unet", "transformer")]
    return any(part.is_file() for part in parts) and (folder / "vae" / "config.json").is_file()


def _class(folder: Path) -> str | None:
    kind = read_json(folder / INDEX).get("_class_name")
    return kind if isinstance(kind, str) else None


def _by_class(model: Model, folder: Path, file: Path | None) -> ResolvedModel:
    """The row whose settings hold for a checkpoint of this class, with the folder's own size."""
    kind = _class(folder)
    rows = [row for row in catalogue.CATALOGUE.values() if _plain(row.pipeline) == kind]
    rows = [row for row in rows if row.name != "demo"]
    if not rows:
        row, family = generic.row_of(kind, model.name, model.path or str(folder))
        return ResolvedModel(row, family, row.pipeline, folder, file)
    family = catalogue.family_of(rows[0].name)
    if family.is_generic:
        row = _placed(rows[0], model)
        return ResolvedModel(row, family, rows[0].name, folder, file)
    denoiser = _config_of(model, folder, family.denoiser)
    vae = _config_of(model, folder, "vae")
    conditioned = denoiser.get("time_cond_proj_dim") is not None
    scheduler = read_json(folder / INDEX).get("scheduler") or [None, None]
    distilled = conditioned or scheduler[1] == "LCMScheduler"
    like = next((row for row in rows if row.distilled == distilled), rows[0])
    row = _placed(like, model)
    if distilled:
        least = min(1.0, like.guidance_scale)  # guided by its weights alone
        guidance = _LCM_GUIDANCE if conditioned else least
        row = replace(row, steps=_LCM_STEPS, guidance_scale=guidance)
    side = denoiser.get("sample_size")
    if family.draws == "picture" and side is not None:
        height, width = side if isinstance(side, list) else (side, side)
        scale = latent_scale(ComponentSpec("diffusers", "", vae))
        row = replace(row, height=height * scale, width=width * scale)
    return ResolvedModel(row, family, like.name, folder, file)


def _config_of(model: Model, folder: Path, part: str) -> dict[str, Any]:
    replaced = part in ("unet", "vae") and getattr(model, part) is not None
    return read_json((part_folder(model, part) if replaced else folder / part) / "config.json")


def _part(model: Model, part: str, given: str) -> ComponentSpec:
    return ComponentSpec(
        "diffusers",
        part_class(model, part),
        read_json(part_folder(model, part) / "config.json"),
    )
