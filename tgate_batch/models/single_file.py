"""One .safetensors file that holds a whole pipeline, in the layout of the original code.

Its header is read, and no weight: what is in it, and of which kind it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgate_batch.errors import one_line

_METADATA = "__metadata__"
_LONGEST = 100_000_000  # bytes of a header, as safetensors itself bounds them
_UNET, _VAE = "model.diffusion_model.", ("first_stage_model.", "vae.")
_TEXT = ("cond_stage_model.", "conditioner.embedders.")
# The beginning of a key that one kind alone has -> the catalogue's row of that kind.
_KINDS = {
    "edm_mean": "playground25",
    "conditioner.embedders.1.": "sdxl",
    "cond_stage_model.model.": "sd21",
    "cond_stage_model.transformer.": "sd15",
}


# How a file says what its weights predict: values of `modelspec.prediction_type` in its header, and
# tensors that hold nothing but their name.
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
_OF_V, _OF_ZERO_SNR, _OF_EDM = "v_pred", "ztsnr", "edm_vpred.sigma_max"
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"


def keys_of(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file; raises ValueError where it is none."""
    return [key for key in header_of(file) if key != _METADATA]


def scheduler_settings(header: Mapping[str, Any]) -> dict[str, Any]:
    """What a file's header says of its scheduler, as arguments of one.

    Raises ValueError, which says what is found, for what no argument says.
    """
    metadata = header.get(_METADATA)
    predicted = (metadata if isinstance(metadata, Mapping) else {}).get("modelspec.prediction_type")
    if _OF_EDM in header:
        raise ValueError(f"its weights are of EDM's kind (tensor {_OF_EDM})")
    if predicted is not None and predicted not in _PREDICTIONS:
        raise ValueError(
            f"its header says modelspec.prediction_type {one_line(str(predicted), 40)!r}"
        )
    predicts = None if predicted is None else _PREDICTIONS[predicted]
    if _OF_V in header:
        if predicts == "epsilon":
            raise ValueError(f"its header says epsilon, and its tensor {_OF_V} says v_prediction")
        predicts = "v_prediction"
    settings: dict[str, Any] = {} if predicts is None else {"prediction_type": predicts}
    return settings | ({"rescale_betas_zero_snr": True} if _OF_ZERO_SNR in header else {})


def unet_channels(header: Mapping[str, Any]) -> int | None:
    """How many channels the U-Net in a file takes; None if it has none in the original layout."""
    layer = header.get(_FIRST_LAYER)
    shape = layer.get("shape") if isinstance(layer, Mapping) else None
    if not isinstance(shape, list) or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    return shape[1]


def header_of(file: Path) -> dict[str, Any]:
    """The header of a safetensors file; raises ValueError where it is none."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 0 < size <= _LONGEST:
                raise ValueError("its header has no length")
            header = json.loads(stream.read(size))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is no safetensors file (its header is no table)")
    return header


def kind_of(keys: list[str]) -> str | None:
    """The catalogue's row of the kind that these tensors make; None: of none that is known."""
    if not any(key.startswith(_UNET) for key in keys):
        return None
    return next(
        (row for start, row in _KINDS.items() if any(key.startswith(start) for key in keys)), None
    )


def missing(keys: list[str], has_unet: bool, has_vae: bool) -> str | None:
    """What a whole pipeline has and the file has not; ``has_...``: it comes from elsewhere."""
    parts: dict[str, tuple[str, ...]] = {"text encoder": _TEXT}
    parts |= {} if has_vae else {"VAE": _VAE}
    parts |= {} if has_unet else {"U-Net": (_UNET,)}
    return next(
        (name for name, starts in parts.items() if not any(k.startswith(starts) for k in keys)),
        None,
    )
