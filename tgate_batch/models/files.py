"""All files that loading a model reads. What is not in this list is neither hashed nor loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.metrics.part_files import PartFiles, listed
from tgate_batch.models.architecture import read_json
from tgate_batch.models.hub import cached, is_local
from tgate_batch.models.loras import files_of
from tgate_batch.models.resolve import INDEX, ResolvedModel, resolve_model

# Classes of parts that have a config.json and no weights.
_WITHOUT_WEIGHTS = ("Tokenizer", "Processor", "Extractor", "Scheduler")


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model.

    ``parts``: of the checkpoint, by the pipeline's argument. ``replaced``: of parts that are loaded
    in the checkpoint's place. ``single``: the file with all weights, if there is one.
    """

    index: Path
    parts: Mapping[str, PartFiles]
    replaced: Mapping[str, PartFiles]
    single: Path | None
    loras: Mapping[str, Path]

    def hashed(self) -> dict[str, Path]:
        """Every file by the name under which the fingerprint has it."""
        listed = {INDEX: self.index}
        for part, part_files in {**self.parts, **self.replaced}.items():
            listed |= {f"{part}/{file.name}": file for file in part_files.files}
        if self.single is not None:
            listed["weights"] = self.single
        return {**listed, **self.loras}

    def links(self) -> dict[str, Path]:
        """The pipeline's folder as a loader is to see it, without replaced parts."""
        listed = {INDEX: self.index}
        for part, part_files in self.parts.items():
            listed |= {f"{part}/{name}": file for name, file in part_files.links().items()}
        return listed


def variant_of(model: Model, dtype: str) -> str | None:
    """Which weights are read, e.g. the half-precision ones; None: the plain ones."""
    return model.variant or (resolve_model(model).row.variant if dtype == "float16" else None)


def replacement_folders(model: Model, resolved: ResolvedModel) -> dict[str, str]:
    """Where the parts lie that are loaded in place of the checkpoint's."""
    places = {"unet": model.unet or resolved.row.unet, "vae": model.vae}
    return {part: place for part, place in places.items() if place is not None}


def list_model_files(model: Model, dtype: str, must: bool = False) -> ModelFiles | None:
    """The files that are read for this resolved dtype.

    None if they are at the hub and not all on this machine, unless they ``must`` be. Raises
    UserError for a local checkpoint that lacks some, and for what a loader must not follow.
    """
    resolved = resolve_model(model)
    if resolved.folder is None:
        return None
    is_own = resolved.file is None
    must = must or (is_own and is_local(resolved.row.checkpoint))
    root, variant = resolved.folder, variant_of(model, dtype)
    places = replacement_folders(model, resolved)
    index = read_json(root / INDEX)
    kinds = {
        name: str(kind[1])
        for name, kind in index.items()
        if isinstance(kind, list) and len(kind) == 2 and all(kind)
        if name not in {*resolved.row.options, *places} and name.isidentifier()
    }
    key = f"models: {model.name}"
    try:
        parts = {name: listed(root / name, variant, root, is_own, must) for name in kinds}
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if is_own:
        if not must and not all(part.is_whole for part in parts.values()):
            return None
        _check_whole(key, root, kinds, parts)
        if model.variant is not None:
            _check_variant(model, root, parts)
    replaced = {}
    for part, place in places.items():
        here = _of_part(f"{key}: {part}", place, model.variant, must)
        if here is None:
            return None
        replaced[part] = here
    loras: dict[str, Path] = {}
    for number in range(len(model.loras)):
        read = files_of(model, number)
        if read is None:
            return None
        loras |= {f"loras/{number}/{name}": file for name, file in read.items()}
    return ModelFiles(root / INDEX, parts, replaced, resolved.file, loras)


def _check_whole(
    key: str, root: Path, kinds: Mapping[str, str], parts: Mapping[str, PartFiles]
) -> None:
    for name, part in parts.items():
        may_have_none = any(word in kinds[name] for word in _WITHOUT_WEIGHTS)
        if part.is_network and not part.has_weights and not may_have_none:
            raise UserError(
                f"{key}: {root / name} has no weights (no .safetensors). Fix: copy the whole "
                "checkpoint"
            )


def _check_variant(model: Model, root: Path, parts: Mapping[str, PartFiles]) -> None:
    variants = {part.variant for part in parts.values() if part.has_weights}
    if model.variant not in variants:
        there = ", ".join(sorted(name or "plain" for name in variants))
        raise UserError(
            f"models: {model.name}: {root} has no weights of the variant {model.variant!r} (there "
            f"are: {there}). Fix: leave variant out, or give one that is there"
        )


def _of_part(key: str, place: str, variant: str | None, must: bool) -> PartFiles | None:
    """What is read of a replaced part; None: it is at a hub, and not whole on this machine."""
    folder = Path(place).expanduser() if is_local(place) else cached(place, "config.json")
    if folder is None:
        return None
    must = must or is_local(place)
    try:
        part = listed(folder, variant, whole=must)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    return part if must or part.is_whole else None
