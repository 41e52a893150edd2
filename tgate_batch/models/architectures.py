"""The catalogue's networks as data: enough to build them without weights and count them offline.

Values are those of the ``config.json`` files in each checkpoint's folders on the Hugging Face hub
(the checkpoint is named beside each row), without the settings that change no shape. Parameter
counts hold them up: see ``tests/metrics/test_macs.py``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tgate_batch.errors import UserError


@dataclass(frozen=True)
class Part:
    """One network: the library and class that build it, and its configuration."""

    library: str  # "diffusers" or "transformers"
    kind: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The networks of one checkpoint. ``height``, ``width`` in pixels, as documented.

    ``tokens`` is the length of the caption that the denoiser attends to; ``encoders`` are what
    makes it (for video, what reads the conditioning picture).
    """

    denoiser: Part
    encoders: Mapping[str, Part]
    vae: Part
    tokens: int
    height: int
    width: int
    scheduler: Part = field(default=Part("diffusers", "DDIMScheduler", {}))


_CLIP_L = Part(
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
_OPEN_CLIP_H = Part(
    "transformers",
    "CLIPTextModel",
    {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
)
_OPEN_CLIP_BIG_G = Part(
    "transformers",
    "CLIPTextModelWithProjection",
    {
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
)
_CLIP_H_VISION = Part(
    "transformers",
    "CLIPVisionModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
)
_T5_XXL = Part(
    "transformers",
    "T5EncoderModel",
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)
_VAE_BLOCKS = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_VAE = Part(
    "diffusers", "AutoencoderKL", {**_VAE_BLOCKS, "up_block_types": ("UpDecoderBlock2D",) * 4}
)
_SD_BLOCKS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
_SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_PIXART = {
    "sample_size": 128,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
}
_SD15 = Architecture(
    denoiser=Part(
        "diffusers",
        "UNet2DConditionModel",
        {**_SD_BLOCKS, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    ),
    encoders={"text_encoder": _CLIP_L},
    vae=_VAE,
    tokens=77,
    height=512,
    width=512,
)
_SD21 = Architecture(
    denoiser=Part(
        "diffusers",
        "UNet2DConditionModel",
        {
            **_SD_BLOCKS,
            "sample_size": 96,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
    ),
    encoders={"text_encoder": _OPEN_CLIP_H},
    vae=_VAE,
    tokens=77,
    height=768,
    width=768,
)
_SDXL_ENCODERS = {"text_encoder": _CLIP_L, "text_encoder_2": _OPEN_CLIP_BIG_G}


def _sdxl(**changes: Any) -> Architecture:
    unet = Part("diffusers", "UNet2DConditionModel", {**_SDXL_UNET, **changes})
    return Architecture(unet, _SDXL_ENCODERS, _VAE, tokens=77, height=1024, width=1024)


def _pixart(tokens: int, **changes: Any) -> Architecture:
    transformer = Part("diffusers", "PixArtTransformer2DModel", {**_PIXART, **changes})
    return Architecture(
        transformer, {"text_encoder": _T5_XXL}, _VAE, tokens, height=1024, width=1024
    )


_SVD = Architecture(
    denoiser=Part(
        "diffusers",
        "UNetSpatioTemporalConditionModel",
        {
            "sample_size": 96,
            "in_channels": 8,
            "out_channels": 4,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3
            + ("DownBlockSpatioTemporal",),
            "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
            "layers_per_block": 2,
            "num_attention_heads": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 768,
            "num_frames": 25,
        },
    ),
    encoders={"image_encoder": _CLIP_H_VISION},
    vae=Part("diffusers", "AutoencoderKLTemporalDecoder", _VAE_BLOCKS),
    tokens=1,
    height=576,
    width=1024,
)

ARCHITECTURES: dict[str, Architecture] = {
    "sd15": _SD15,  # stable-diffusion-v1-5/stable-diffusion-v1-5
    "sd21": _SD21,  # stabilityai/stable-diffusion-2-1
    "sdxl": _sdxl(),  # stabilityai/stable-diffusion-xl-base-1.0
    "pixart_alpha": _pixart(tokens=120),  # PixArt-alpha/PixArt-XL-2-1024-MS
    # PixArt-alpha/PixArt-Sigma-XL-2-1024-MS
    "pixart_sigma": _pixart(tokens=300, use_additional_conditions=False),
    "lcm_sdxl": _sdxl(time_cond_proj_dim=256),  # latent-consistency/lcm-sdxl
    "lcm_pixart_alpha": _pixart(tokens=120),  # PixArt-alpha/PixArt-LCM-XL-2-1024-MS
    "svd": _SVD,  # stabilityai/stable-video-diffusion-img2vid-xt
}


_ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder")
_PARTS = ("unet", "transformer", "vae", "scheduler", *_ENCODERS)
_CONFIGS = {"scheduler": "scheduler_config.json"}


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture of a diffusers pipeline folder, from the ``config.json`` of its parts.

    Raises UserError where the folder holds no pipeline of a kind that can be counted.
    """
    folder = Path(folder).expanduser()
    index = _read(folder / "model_index.json")
    parts = {
        name: Part(*index[name], _read(folder / name / _CONFIGS.get(name, "config.json")))
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
    side = denoiser.config.get("sample_size", 64) * latent_scale(parts["vae"])
    return Architecture(
        denoiser=denoiser,
        encoders=encoders,
        vae=parts["vae"],
        tokens=_tokens(index.get("_class_name", ""), encoders),
        height=side,
        width=side,
        scheduler=parts["scheduler"],
    )


def latent_scale(vae: Part) -> int:
    """Pixels a latent, along one side: each block of the VAE but the last halves the picture."""
    config = vae.config
    blocks = config.get("decoder_block_out_channels") or config["block_out_channels"]
    return 2 ** (len(blocks) - 1)


def _tokens(pipeline: str, encoders: Mapping[str, Part]) -> int:
    if "PixArt" in pipeline:  # the pipelines' own `max_sequence_length`
        return 300 if "Sigma" in pipeline else 120
    text = encoders.get("text_encoder")
    return 1 if text is None else text.config.get("max_position_embeddings", 77)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent} is not a diffusers folder (no {file.name})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
