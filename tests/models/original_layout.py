"""A Stable Diffusion 1.5 of a folder as one file in the original code's layout."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def save_as_one(folder: Path, file: Path, layers: int = 2) -> Path:
    """Writes the pipeline in ``folder`` as one file; ``layers`` a block of its U-Net."""
    unet = _weights(folder / "unet")
    attended = {tuple(key.split(".")[:2]) for key in unet if ".attentions." in key}
    tensors = {
        f"model.diffusion_model.{_unet(key, layers, attended)}": value
        for key, value in unet.items()
    }
    vae = _weights(folder / "vae")
    blocks = len({key.split(".")[2] for key in vae if key.startswith("encoder.down_blocks")})
    for key, value in vae.items():
        name = _vae(key, blocks)
        is_matrix = ".attn_1." in name and name.endswith("weight") and value.ndim == 2
        tensors[f"first_stage_model.{name}"] = value[..., None, None] if is_matrix else value
    for key, value in _weights(folder / "text_encoder").items():
        name = key.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return file


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _unet(key: str, layers: int, attended: set[tuple[str, ...]]) -> str:
    for ours, theirs in _UNET_TOP.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    side, *rest = key.split(".")
    if side == "mid_block":
        kind, number, *inner = rest
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
        return f"{place}.{_inner(kind, inner)}"
    block, kind, number, *inner = rest
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{inner[-1]}"
    if side == "down_blocks":
        index = 1 + int(block) * (layers + 1) + int(number)
        return f"input_blocks.{index}.{int(kind == 'attentions')}.{_inner(kind, inner)}"
    if kind == "upsamplers":
        last = int(block) * (layers + 1) + layers
        return f"output_blocks.{last}.{1 + ((side, block) in attended)}.conv.{inner[-1]}"
    index = int(block) * (layers + 1) + int(number)
    return f"output_blocks.{index}.{int(kind == 'attentions')}.{_inner(kind, inner)}"


def _inner(kind: str, inner: list[str]) -> str:
    if kind == "attentions":
        return ".".join(inner)
    return ".".join([_RESNET[inner[0]], *inner[1:]])


def _vae(key: str, blocks: int) -> str:
    for ours, theirs in (
        ("conv_norm_out", "norm_out"),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
        ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
        ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("resnets", "block"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("down_blocks", "down"),
    ):
        key = key.replace(ours, theirs)
    side, _, rest = key.partition(".up_blocks.")
    if rest:
        number, _, inner = rest.partition(".")
        return f"{side}.up.{blocks - 1 - int(number)}.{inner}"
    return key
