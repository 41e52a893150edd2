"""PixArt-Alpha and PixArt-Sigma, and Alpha's latent consistency model.

Checkpoints and settings: github.com/HaozheLiu-ST/T-GATE, README, and the models' cards.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from tgate_batch.models import tiny
from tgate_batch.models.architecture import KL_VAE, Architecture, ComponentSpec
from tgate_batch.models.family import ComponentConfig, Entry, Family, empty

# The pipelines' own `max_sequence_length` (diffusers 0.42, pipelines/pixart_alpha/).
_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
_TRANSFORMER = {
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
_T5_XXL = ComponentSpec(
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


def _architecture(pipeline: str, **changes: Any) -> Architecture:
    return Architecture(
        denoiser=ComponentSpec(
            "diffusers", "PixArtTransformer2DModel", {**_TRANSFORMER, **changes}
        ),
        encoders={"text_encoder": _T5_XXL},
        vae=KL_VAE,
        tokens=_TOKENS[pipeline],
    )


def _tiny(pipeline: str, scheduler: str) -> Any:
    import diffusers
    import transformers

    steps = getattr(diffusers, scheduler)()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        num_attention_heads=3,
        attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=tiny.WIDTH,
        in_channels=4,
        out_channels=8,
    )
    tokenizer = tiny.t5_tokenizer()
    text_encoder = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer),
            d_model=tiny.WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
        )
    )
    return getattr(diffusers, pipeline)(
        transformer=transformer,
        vae=tiny.vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=steps,
    )


def _inputs(
    config: ComponentConfig, batch: int, tokens: int, height: int, width: int
) -> dict[str, Any]:
    """Arguments of a PixArtTransformer2DModel on the meta device.

    ``hidden_states`` [batch, channels, height, width]; ``timestep`` [batch];
    ``encoder_hidden_states`` [batch, tokens, caption channels] and its mask [batch, tokens]; where
    it takes the picture's size, ``resolution`` [batch, 2] and ``aspect_ratio`` [batch, 1].
    """
    sized = config["use_additional_conditions"]
    if sized is None:  # as the transformer decides it
        sized = config["sample_size"] == 128
    return {
        "hidden_states": empty(batch, config["in_channels"], height, width),
        "timestep": empty(batch),
        "encoder_hidden_states": empty(batch, *_caption(config, tokens)),
        "encoder_attention_mask": empty(batch, *_mask(config, tokens)),
        "added_cond_kwargs": {
            "resolution": empty(batch, 2) if sized else None,
            "aspect_ratio": empty(batch, 1) if sized else None,
        },
    }


def _caption(config: ComponentConfig, tokens: int) -> tuple[int, int]:
    """Shape of one encoded caption: (tokens, channels)."""
    return tokens, config["caption_channels"]


def _mask(config: ComponentConfig, tokens: int) -> tuple[int]:
    """Shape of one caption's mask: (tokens,)."""
    return (tokens,)


def _tokens(row: Entry, encoders: Mapping[str, ComponentSpec]) -> int:
    return _TOKENS[row.pipeline]


FAMILY = Family(
    entries=(
        Entry(
            "pixart_alpha",
            "PixArtAlphaPipeline",
            "PixArt-alpha/PixArt-XL-2-1024-MS",
            steps=25,
            guidance_scale=4.5,
            height=1024,
            width=1024,
            architecture=_architecture("PixArtAlphaPipeline"),
            tiny=partial(_tiny, "PixArtAlphaPipeline", "DPMSolverMultistepScheduler"),
            license="openrail++",
        ),
        Entry(
            "pixart_sigma",
            "PixArtSigmaPipeline",
            "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            steps=25,
            guidance_scale=4.5,
            height=1024,
            width=1024,
            architecture=_architecture("PixArtSigmaPipeline", use_additional_conditions=False),
            tiny=partial(_tiny, "PixArtSigmaPipeline", "DPMSolverMultistepScheduler"),
        ),
        Entry(
            "lcm_pixart_alpha",
            "PixArtAlphaPipeline",
            "PixArt-alpha/PixArt-LCM-XL-2-1024-MS",
            steps=4,
            guidance_scale=0.0,
            height=1024,
            width=1024,
            architecture=_architecture("PixArtAlphaPipeline"),
            tiny=partial(_tiny, "PixArtAlphaPipeline", "LCMScheduler"),
            license="openrail++",
            distilled=True,
        ),
    ),
    denoiser="transformer",
    mixes_guidance=True,
    inputs=_inputs,
    # diffusers 0.42, pipelines/pixart_alpha/pipeline_pixart_alpha.py
    encoded={
        "prompt_embeds": _caption,
        "prompt_attention_mask": _mask,
        "negative_prompt_embeds": _caption,
        "negative_prompt_attention_mask": _mask,
    },
    # Its negative prompt defaults to a text, which encoded captions rule out.
    call={"negative_prompt": None, "clean_caption": False, "use_resolution_binning": False},
    tokens=_tokens,
    bare=dict.fromkeys(("vae", "text_encoder", "tokenizer")),
    loras=False,
)
