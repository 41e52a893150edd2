"""One .safetensors file that holds a whole pipeline, in the layout of the original code.

Its header is read, and no weight: what is in it, and of which kind it is.
"""

import json
from pathlib import Path

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


def keys_of(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file; raises ValueError where it is none."""
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
    return [key for key in header if key != "__metadata__"]


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
