"""Wan 2.1: a text becomes a video of 81 frames, 16 a second.

Settings: the model's card and the pipeline's defaults. The ``config.json`` files were not at hand:
*the numbers are those of the script that wrote them*, scripts/convert_wan_to_diffusers.py
(Wan-T2V-1.3B; its autoencoder has AutoencoderKLWan's defaults) in huggingface/diffusers, and
google/umt5-xxl's, typed from its readers. The parameters then are those of the files: 2.84 GB of
half-precision numbers, and .51 GB of float32 for the autoencoder.

Its pipeline calls the denoiser once a branch, not once with a doubled batch.
"""

from collections.abc import Mapping
from typing import Any

from tgate_batch.models import tiny
from tgate_batch.models.architecture import Architecture, ComponentSpec
from tgate_batch.models.family import ComponentConfig, Entry, Family, empty

_TOKENS = 512  # the pipeline's own `max_sequence_length` (diffusers 0.42, pipelines/wan/)
_FRAMES = 81  # its `num_frames`
_FRAMES_A_LATENT = 4  # but for the first, which is a frame
_TRANSFORMER = ComponentSpec(
    "diffusers",
    "WanTransformer3DModel",
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 8960,
        "num_layers": 30,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
    },
)
_AUTOENCODER = ComponentSpec(
    "diffusers",
    "AutoencoderKLWan",
    {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
    },
)
_UMT5_XXL = ComponentSpec(
    "transformers",
    "UMT5EncoderModel",
    {
        "vocab_size": 256384,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)


def _tiny() -> Any:
    import diffusers
    import transformers

    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=tiny.WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=64,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0, 0.5, -0.5, 0.0],
        latents_std=[1.0, 2.0, 2.0, 1.0],
    )
    tokenizer = tiny.t5_tokenizer()
    text_encoder = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=len(tokenizer),
            d_model=tiny.WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
        )
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.WanPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
    )


def _inputs(
    config: ComponentConfig, batch: int, tokens: int, height: int, width: int
) -> dict[str, Any]:
    """Arguments of a WanTransformer3DModel on the meta device.

    ``hidden_states`` [batch, channels, frames, height, width]; ``timestep`` [batch];
    ``encoder_hidden_states`` [batch, tokens, caption channels].
    """
    return {
        "hidden_states": empty(batch, config["in_channels"], _latents(), height, width),
        "timestep": empty(batch),
        "encoder_hidden_states": empty(batch, *_caption(config, tokens)),
    }


def _latents() -> int:
    """How many latents a video has along its time."""
    return (_FRAMES - 1) // _FRAMES_A_LATENT + 1


def _caption(config: ComponentConfig, tokens: int) -> tuple[int, int]:
    """Shape of one encoded caption: (tokens, channels)."""
    return tokens, config["text_dim"]


def _decode(pipeline: Any, latents: Any) -> Any:
    """Latents [n, channels, frames, h, w] -> pixels, float32 [n, frames, height, width, 3]."""
    vae = pipeline.vae
    mean, std = (
        latents.new_tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    frames = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
    return frames.permute(0, 2, 3, 4, 1).float()


def _tokens(row: Entry, encoders: Mapping[str, ComponentSpec]) -> int:
    return _TOKENS


def _decoder_inputs(architecture: Architecture, height: int, width: int) -> dict[str, Any]:
    """``z`` [1, channels, frames, height, width] of one video."""
    return {"z": empty(1, architecture.vae.config["z_dim"], _latents(), height, width)}


FAMILY = Family(
    entries=(
        Entry(
            "wan21",
            "WanPipeline",
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            steps=50,
            guidance_scale=5.0,
            height=480,
            width=832,
            architecture=Architecture(
                _TRANSFORMER,
                encoders={"text_encoder": _UMT5_XXL},
                vae=_AUTOENCODER,
                tokens=_TOKENS,
            ),
            tiny=_tiny,
            license="apache-2.0",
            half="bfloat16",
            float32=("vae",),
        ),
    ),
    denoiser="transformer",
    mixes_guidance=True,
    multiple=16,
    inputs=_inputs,
    # diffusers 0.42, pipelines/wan/pipeline_wan.py
    encoded={"prompt_embeds": _caption, "negative_prompt_embeds": _caption},
    call={"num_frames": _FRAMES},
    draws="video",
    frames_per_second=16,
    decode=_decode,
    tokens=_tokens,
    decoder_inputs=_decoder_inputs,
)
