"""Locates the LoRAs of a model and fuses them into its weights.

A fused LoRA changes neither the cost of an image, nor MACs, nor caches. The pipeline loads files of
diffusers and of the usual trainers. Files of peft's ``save_pretrained`` name no component, and are
loaded into the denoiser.
"""

import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tgate_batch.config import Lora, Model
from tgate_batch.errors import UserError, one_line
from tgate_batch.models import hub
from tgate_batch.models.architecture import on_meta
from tgate_batch.models.family import Family, pipeline_class
from tgate_batch.models.resolve import ResolvedModel, architecture_of
from tgate_batch.models.single_file import keys_of

# What the keys of other adapters have in them, and of LoRAs that diffusers would fuse as others.
_OTHER_KINDS = {
    "hada_w": "a LoHa (LyCORIS)",
    "lokr_w": "a LoKr (LyCORIS)",
    "oft_": "an OFT adapter",
    "ia3_": "an IA3 adapter",
    "on_input": "an IA3 adapter",
    "dora_scale": "a DoRA, whose dora_scale diffusers drops",
    "bundle_emb": "a LoRA with bundled embeddings, which are not loaded",
    "lora_mid": "a LoCon in CP form",
    "lora_controlnet": "a ControlNet as a LoRA",
    "emb_params": "a textual inversion",
    "string_to_param": "a textual inversion",
}
# Ends of the keys that a LoRA has, after the name of its layer.
_LAYER = re.compile(
    r"""(?P<layer>.+?)(?:
        \.lora_(?:down|up)\.weight | \.alpha
        | \.lora_[AB](?:\.[A-Za-z_]\w*)?\.(?:weight|bias)
        | [._]lora(?:_linear_layer)?\.(?:down|up)\.weight
        | \.lora_magnitude_vector(?:\.weight|\.[A-Za-z_]\w*)*
    )""",
    re.VERBOSE,
)
_USUAL = "pytorch_lora_weights.safetensors"
_PEFT = "base_model.model."  # how keys of peft's own files begin
_PEFT_CONFIG = "adapter_config.json"


def check(model: Model, family: Family) -> None:
    """Raises UserError for LoRAs that cannot be loaded, as far as it shows without weights."""
    if not model.loras:
        return
    key = f"models: {model.name}: loras"
    if not family.loras:
        raise UserError(
            f"{key}: pipelines of this family load no LoRA here. Fix: remove them, or "
            "merge them into the checkpoint"
        )
    if find_spec("peft") is None:
        raise UserError(f"{key}: they need peft, which is not installed; pip install peft")
    for number in range(len(model.loras)):
        file = located(model, number)
        if file is None:
            hub.check(model.loras[number].path, None, f"{key}.{number}")
            continue
        try:
            keys = keys_of(file)
        except ValueError as error:
            raise UserError(f"{key}.{number}: {error}; give a LoRA's .safetensors") from None
        if (refused := _other_kind(keys)) is not None:
            raise UserError(f"{key}.{number}: {file} {refused}. Fix: give a plain LoRA")
        if keys[0].startswith(_PEFT) and not (file.parent / _PEFT_CONFIG).is_file():
            raise UserError(
                f"{key}.{number}: {file} is one of peft's own, and no {_PEFT_CONFIG} lies beside "
                "it; give the whole folder"
            )


def fits(model: Model, resolved: ResolvedModel) -> tuple[str, ...]:
    """Returns one line per local LoRA: how many of its layers fit the model.

    Raises UserError if no layer of a LoRA fits.
    """
    files = [located(model, number) for number in range(len(model.loras))]
    if not any(files) or resolved.folder is None:
        return ()
    networks = _networks(model, resolved)
    names = {
        f"{part}.{name}".replace("text_model.", "")
        for part, network in networks.items()
        for name, _ in network.named_modules()
    }
    config = networks[resolved.family.denoiser].config
    lines = []
    for number, file in enumerate(files):
        if file is None:
            continue
        layers = {match["layer"] for key in keys_of(file) if (match := _LAYER.fullmatch(key))}
        fitting = sum(
            1 for name in _as_loaded(resolved, file, layers, config) if _is_layer(name, names)
        )
        name = one_line(file.name, 60)
        lines.append(f"loras.{number} ({name}): {fitting} of {len(layers)} layers fit this model")
        if fitting == 0:
            raise UserError(
                f"models: {model.name}: loras.{number}: none of the {len(layers)} layers of {file} "
                "fits this model: it has no weights for this model. Fix: give a LoRA of its kind"
            )
    return tuple(lines)


def _networks(model: Model, resolved: ResolvedModel) -> dict[str, Any]:
    """The denoiser and the text encoders, by their names in the pipeline, without weights."""
    built = architecture_of(resolved, model)
    parts = {resolved.family.denoiser: built.denoiser, **built.encoders}
    return {part: on_meta(described) for part, described in parts.items()}


def _as_loaded(
    resolved: ResolvedModel, file: Path, layers: Collection[str], config: Any
) -> set[str]:
    """The layers by the names that the pipeline's own loader gives them."""
    denoiser = resolved.family.denoiser
    if all(layer.startswith(_PEFT) for layer in layers):
        return {f"{denoiser}.{layer.removeprefix(_PEFT)}" for layer in layers}
    kind = pipeline_class(resolved.row)
    options = {"unet_config": config} if denoiser == "unet" else {}  # to map the original's names
    with _quiet():
        try:
            read = kind.lora_state_dict(
                str(file.parent), weight_name=file.name, use_safetensors=True, **options
            )
        except Exception:  # its keys are of no layout that the loader knows: it says so itself
            return set(layers)
    tensors = read[0] if isinstance(read, tuple) else read
    return {re.split(r"[._]lora(?:_|\.)", key)[0].replace(".processor", "") for key in tensors}


def _is_layer(name: str, names: Collection[str]) -> bool:
    name = name.replace("text_model.", "")
    return name in names or f"{name}.0" in names


def _other_kind(keys: list[str]) -> str | None:
    """What a file is that is no plain LoRA, known by its keys; None if it is one."""
    for part, kind in _OTHER_KINDS.items():
        if any(part in key for key in keys):
            return f"is {kind}"
    strange = next((key for key in keys if not _LAYER.fullmatch(key)), None)
    if keys and strange is None:
        return None
    return f"is no LoRA (it has a key {one_line(strange or 'none', 60)})"


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers warns of each part that a LoRA leaves alone; ``fits`` has counted them."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a second one
            yield
    finally:
        logging.set_verbosity(verbosity)


def located(model: Model, number: int) -> Path | None:
    """Returns the file of a LoRA; None if it is at the hub and not in the local cache.

    Raises UserError if the path does not exist or is not safetensors.
    """
    lora, key = model.loras[number], f"models: {model.name}: loras.{number}"
    if lora.weight_name is not None and not lora.weight_name.endswith(".safetensors"):
        raise UserError(
            f"{key}: weight_name {lora.weight_name!r} is no .safetensors, and pickles are not read"
        )
    if not hub.is_local(lora.path):
        name = lora.weight_name or _USUAL
        snapshot = hub.cached(lora.path, name)
        return None if snapshot is None else snapshot / name
    place = Path(lora.path).expanduser()
    if place.is_dir():
        return _in_folder(place, lora, key)
    if place.suffix != ".safetensors":
        raise UserError(f"{key}: {lora.path} is no folder, hub id or .safetensors file")
    if not place.is_file():
        raise UserError(f"{key}: {lora.path} does not exist")
    return place


def files_of(model: Model, number: int) -> dict[str, Path] | None:
    """What is read of a LoRA, by what it is; None: it is not on this machine."""
    file = located(model, number)
    if file is None:
        return None
    is_pefts = keys_of(file)[0].startswith(_PEFT)
    return {"weights": file} | ({"config": file.parent / _PEFT_CONFIG} if is_pefts else {})


def add(pipeline: Any, denoiser: str, model: Model) -> None:
    """Loads the LoRAs of the model and fuses them, each at its scale.

    ``denoiser``: the pipeline's attribute of that name. Raises UserError for one that does not fit.
    """
    try:
        with _quiet():
            _fuse(pipeline, denoiser, model)
    except UserError:
        raise
    except ValueError as error:  # of weights that are not numbers
        raise UserError(f"models: {model.name}: loras: {one_line(error)}") from None


def _fuse(pipeline: Any, denoiser: str, model: Model) -> None:
    names = [f"lora_{number}" for number in range(len(model.loras))]
    for number, name in enumerate(names):
        try:
            _load(pipeline, denoiser, _had(model, number), name)
        except UserError:
            raise
        except Exception as error:  # peft and diffusers raise nearly anything
            reason = one_line(f"{type(error).__name__}: {error}")
            raise UserError(
                f"models: {model.name}: loras.{number} does not fit this model: {reason}"
            ) from None
        if name not in {n for names in pipeline.get_list_adapters().values() for n in names}:
            raise UserError(
                f"models: {model.name}: loras.{number} has no weights for this model: it was "
                "made for another kind"
            )
    pipeline.set_adapters(names, [lora.scale for lora in model.loras])
    pipeline.fuse_lora(safe_fusing=True)
    pipeline.unload_lora_weights()


def _in_folder(folder: Path, lora: Lora, key: str) -> Path:
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    name = lora.weight_name or (files[0] if len(files) == 1 else _USUAL)
    if name in files:
        return folder / name
    if not files:
        raise UserError(f"{key}: {lora.path} has no .safetensors, and pickles are not read")
    raise UserError(f"{key}: give as weight_name which of {lora.path}: {', '.join(files)}")


def fetch(model: Model) -> None:
    """Fetches the LoRAs that are at the hub and not on this machine; raises UserError."""
    for number in range(len(model.loras)):
        _had(model, number)


def _had(model: Model, number: int) -> Path:
    """The file of a LoRA, fetched where it is not here."""
    file = located(model, number)
    if file is not None:
        return file
    lora, key = model.loras[number], f"models: {model.name}: loras.{number}"
    hub.fetched(lora.path, None, key, (lora.weight_name or _USUAL, _PEFT_CONFIG))
    file = located(model, number)
    if file is None:
        name = lora.weight_name or _USUAL
        raise UserError(f"{key}: {lora.path} has no {name}; give weight_name")
    return file


def _load(pipeline: Any, denoiser: str, file: Path, name: str) -> None:
    if not keys_of(file)[0].startswith(_PEFT):
        pipeline.load_lora_weights(
            str(file.parent), weight_name=file.name, adapter_name=name, use_safetensors=True
        )
        return
    from peft import LoraConfig
    from safetensors.torch import load_file

    settings = LoraConfig.from_pretrained(str(file.parent)).to_dict()
    getattr(pipeline, denoiser).load_lora_adapter(
        {key.removeprefix(_PEFT): value for key, value in load_file(file).items()},
        prefix=None,
        adapter_name=name,
        metadata={key: value for key, value in settings.items() if key not in ("peft_type",)},
    )
