"""The networks of the embedded pipeline, untrained, and the tokenizer made for its captions."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tgate_batch.demo import scenes

TOKENS = 24
"""Tokens of a caption, start and end included; the longest caption has 21."""

_WIDTH = 128  # of the text encoder's states
_START, _END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Every word a caption can hold."""
    places = [word for place, (preposition, _) in scenes.PLACES.items()
              for word in (preposition, place)]  # fmt: skip
    named = (*scenes.BACKGROUNDS, *scenes.COLOURS, *scenes.SHAPES, *scenes.SIZES)
    return sorted({*places, *named, "a", "and", "the", "background"})


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that has one token for each caption word, and bytes for all else."""
    spellings = {word: (*word[:-1], word[-1] + "</w>") for word in words()}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(p for spelling in spellings.values() for p in pairwise(spelling)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spellings = {word: _merged(spelling, best) for word, spelling in spellings.items()}
    letters = _byte_letters()
    entries = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    entries = list(dict.fromkeys([*entries, _START, _END]))
    return CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(entries)},
        merges=merges,
        unk_token=_END,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        model_max_length=TOKENS,
    )


def _merged(spelling: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts, out = list(spelling), []
    while parts:
        part = parts.pop(0)
        if parts and (part, parts[0]) == pair:
            part += parts.pop(0)
        out.append(part)
    return tuple(out)


def _byte_letters() -> list[str]:
    """The printable stand-ins of the 256 bytes that GPT-2's and CLIP's byte-level BPE use."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def autoencoder() -> AutoencoderKL:
    """64x64 pixels to 16x16 latents of 8 channels.

    One normalisation group: with several, each sees a flat colour as zero variance and forgets it.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 32),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=1,
        sample_size=scenes.SIDE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """Two causal layers, 128 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=_WIDTH,
            intermediate_size=4 * _WIDTH,
            projection_dim=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def unet() -> UNet2DConditionModel:
    """Self- and cross-attention at 16x16, 8x8 and 4x4; predicts zero at first."""
    network = UNet2DConditionModel(
        sample_size=scenes.SIDE // 4,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    torch.nn.init.zeros_(network.conv_out.weight)
    torch.nn.init.zeros_(network.conv_out.bias)
    return network


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M from pure noise, on a cosine schedule, velocity prediction."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # unread by trailing spacing; diffusers warns about any other value
    )


def pipeline(
    vae: AutoencoderKL, encoder: CLIPTextModel, tokens: CLIPTokenizer, denoiser
) -> StableDiffusionPipeline:
    """The four parts as one pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokens,
        unet=denoiser,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
