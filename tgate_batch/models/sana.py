"""Sana: a transformer of linear attention on latents of 32 pixels, behind a small language model.

Settings: the model's card and the pipeline's defaults. The ``config.json`` files were not at hand:
*the numbers are those of the scripts that wrote them*, scripts/convert_sana_to_diffusers.py
(SanaMS_1600M_P1_D20) and scripts/convert_dcae_to_diffusers.py (dc-ae-f32c32-sana-1.0) in
huggingface/diffusers, and of google/gemma-2-2b, which are transformers' defaults. The parameters
then are those of the hub's files: 3.21 GB of float16 numbers (the card says 1648 M, which is more
than the file holds), and 1.25 GB of float32 for the autoencoder.
"""

from collections.abc import Mapping
from typing import Any

from tgate_batch.models import tiny
from tgate_batch.models.architecture import Architecture, ComponentSpec
from tgate_batch.models.family import ComponentConfig, Entry, Family, empty

_TOKENS = 300  # the pipeline's own `max_sequence_length` (diffusers 0.42, pipelines/sana/)
_TRANSFORMER = ComponentSpec(
    "diffusers",
    "SanaTransformer2DModel",
    {
        "in_channels": 32,
        "out_channels": 32,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_layers": 20,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
        "caption_channels": 2304,
        "mlp_ratio": 2.5,
        "sample_size": 32,
        "patch_size": 1,
    },
)
_WIDTHS = (128, 256, 512, 512, 1024, 1024)
_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_SCALES = ((),) * 3 + ((5,),) * 3
_AUTOENCODER = ComponentSpec(
    "diffusers",
    "AutoencoderDC",
    {
        "latent_channels": 32,
        "encoder_block_types": _BLOCKS,
        "decoder_block_types": _BLOCKS,
        "encoder_block_out_channels": _WIDTHS,
        "decoder_block_out_channels": _WIDTHS,
        "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
        "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
        "encoder_qkv_multiscales": _SCALES,
        "decoder_qkv_multiscales": _SCALES,
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 0.41407,
    },
)
_GEMMA = ComponentSpec(
    "transformers",
    "Gemma2Model",
    {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
)


def _tiny() -> Any:
    import diffusers
    import transformers

    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=tiny.WIDTH,
        sample_size=32,
    )
    tokenizer = tiny.gemma_tokenizer()
    text_encoder = transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=tiny.WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        transformer=transformer,
        vae=_tiny_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
    )


def _tiny_autoencoder() -> Any:
    import diffusers

    blocks = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    scales = ((),) * 5 + ((5,),)
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )


def _inputs(
    config: ComponentConfig, batch: int, tokens: int, height: int, width: int
) -> dict[str, Any]:
    """Arguments of a SanaTransformer2DModel on the meta device.

    ``hidden_states`` [batch, channels, height, width]; ``timestep`` [batch];
    ``encoder_hidden_states`` [batch, tokens, caption channels] and its mask [batch, tokens].
    """
    return {
        "hidden_states": empty(batch, config["in_channels"], height, width),
        "timestep": empty(batch),
        "encoder_hidden_states": empty(batch, *_caption(config, tokens)),
        "encoder_attention_mask": empty(batch, *_mask(config, tokens)),
    }


def _caption(config: ComponentConfig, tokens: int) -> tuple[int, int]:
    """Shape of one encoded caption: (tokens, channels)."""
    return tokens, config["caption_channels"]


def _mask(config: ComponentConfig, tokens: int) -> tuple[int]:
    """Shape of one caption's mask: (tokens,)."""
    return (tokens,)


def _tokens(row: Entry, encoders: Mapping[str, ComponentSpec]) -> int:
    """Of the denoiser. The text encoder reads the pipeline's instruction before them too."""
    return _TOKENS


FAMILY = Family(
    entries=(
        Entry(
            "sana",
            "SanaPipeline",
            "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
            steps=20,
            guidance_scale=4.5,
            height=1024,
            width=1024,
            architecture=Architecture(
                _TRANSFORMER,
                encoders={"text_encoder": _GEMMA},
                vae=_AUTOENCODER,
                tokens=_TOKENS,
            ),
            tiny=_tiny,
            license="NSCL v2-custom (NVIDIA), and Gemma's terms of use",
            half="bfloat16",
        ),
    ),
    denoiser="transformer",
    mixes_guidance=True,
    multiple=32,
    inputs=_inputs,
    # diffusers 0.42, pipelines/sana/pipeline_sana.py
    encoded={
        "prompt_embeds": _caption,
        "prompt_attention_mask": _mask,
        "negative_prompt_embeds": _caption,
        "negative_prompt_attention_mask": _mask,
    },
    # Its negative prompt defaults to a text, which encoded captions rule out.
    call={"negative_prompt": None, "use_resolution_binning": False},
    tokens=_tokens,
    bare=dict.fromkeys(("vae", "text_encoder", "tokenizer")),
)
