"""The networks of a checkpoint as data: enough to build them without weights and count them.

Where the families' files give such data, values are those of the ``config.json`` files in each
checkpoint's folders on the Hugging Face hub, without the settings that change no shape. Parameter
counts hold them up: see ``tests/models/test_macs.py``.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from tgate_batch.errors import UserError


@dataclass(frozen=True)
class ComponentSpec:
    """One network or scheduler: the library and class that build it, and its configuration."""

    library: str  # "diffusers", "transformers", or a module of one's own
    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The networks of one checkpoint.

    ``encoders`` make what the denoiser attends to, from the caption or from a picture; ``tokens``
    is its length. ``controlnet`` steers the denoiser, if there is one.
    """

    denoiser: ComponentSpec
    encoders: Mapping[str, ComponentSpec]
    vae: ComponentSpec
    tokens: int
    scheduler: ComponentSpec = ComponentSpec("diffusers", "DDIMScheduler", {})
    controlnet: ComponentSpec | None = None


# Two parts that several families share. CLIP ViT-L/14: openai/clip-vit-large-patch14. The VAE:
# stable-diffusion-v1-5/stable-diffusion-v1-5; those of SDXL and PixArt have the same shapes.
CLIP_L = ComponentSpec(
    "transformers",
    "CLIPTextModel",
    {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
)
KL_VAE = ComponentSpec(
    "diffusers",
    "AutoencoderKL",
    {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
)


def latent_scale(vae: ComponentSpec) -> int:
    """Pixels a latent, along one side: each block of the VAE but the last halves the picture."""
    config = vae.config
    names = ("decoder_block_out_channels", "block_out_channels", "dim_mult")
    blocks = next(config[name] for name in names if name in config)
    return 2 ** (len(blocks) - 1)


_ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder")
_PARTS = ("unet", "transformer", "controlnet", "vae", "scheduler", *_ENCODERS)


def read_architecture(
    folder: str | Path, tokens: Callable[[Mapping[str, ComponentSpec]], int]
) -> Architecture:
    """The architecture of a diffusers pipeline folder, from the ``config.json`` of its parts.

    ``tokens`` tells from the encoders how many tokens the denoiser attends to. Raises UserError
    where the folder holds no pipeline of a kind that can be counted.
    """
    folder = Path(folder).expanduser()
    index = read_json(folder / "model_index.json")
    parts = {
        name: _read_part(folder / name, *index[name])
        for name in _PARTS
        if all(index.get(name) or [None])
    }
    denoiser = parts.get("unet") or parts.get("transformer")
    if denoiser is None or "vae" not in parts or "scheduler" not in parts:
        raise UserError(
            f"{folder} holds {', '.join(parts) or 'no parts'}; counting MACs needs a unet or "
            "transformer, a vae and a scheduler"
        )
    encoders = {name: part for name, part in parts.items() if name in _ENCODERS}
    return Architecture(
        denoiser,
        encoders,
        parts["vae"],
        tokens(encoders),
        parts["scheduler"],
        parts.get("controlnet"),
    )


def _read_part(folder: Path, library: str, kind: str) -> ComponentSpec:
    name = "scheduler_config.json" if folder.name == "scheduler" else "config.json"
    if library not in ("diffusers", "transformers") and library not in sys.modules:
        library = f"diffusers.pipelines.{library}"  # an index leaves out where such a part lies
    return ComponentSpec(library, kind, read_json(folder / name))


def build(part: ComponentSpec) -> Any:
    """The part from its configuration alone."""
    import diffusers

    kind = getattr(import_module(part.library), part.class_name)
    if issubclass(kind, diffusers.ConfigMixin):
        return kind.from_config(dict(part.config))
    settings = kind.config_class.from_dict(dict(part.config))
    if "empty_init" in signature(kind).parameters:  # ChatGLM: else it takes memory for its weights
        return kind(settings, empty_init=False)
    return kind(settings)


def on_meta(part: ComponentSpec) -> Any:
    """The network on the meta device: its layers and shapes, without weights."""
    import torch

    with torch.device("meta"):
        module = build(part)
    return module.to("meta").eval()


def class_names(folder: str) -> set[str]:
    """What a folder of diffusers (``models``, ``schedulers``) offers; imports nothing of it."""
    spec = find_spec("diffusers")
    assert spec is not None
    assert spec.origin is not None
    listing = (Path(spec.origin).parent / folder / "__init__.py").read_text(encoding="utf-8")
    return set(re.findall(r'"(\w+)"', listing))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a diffusers folder; raises UserError where it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent} is not a diffusers folder (no {file.name})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
