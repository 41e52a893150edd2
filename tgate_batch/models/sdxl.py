"""Stable Diffusion XL, and its latent consistency model.

Checkpoints and settings: github.com/HaozheLiu-ST/T-GATE, README, and the models' cards.
"""

from functools import partial
from typing import Any

from tgate_batch.models import tiny
from tgate_batch.models.architecture import CLIP_L, KL_VAE, Architecture, Part
from tgate_batch.models.family import Config, Entry, Family, empty
from tgate_batch.models.sd import caption, unet_inputs

_TIME_IDS = 6  # original size, crop and target size, two numbers each
_UNET = {
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


def _architecture(**changes: Any) -> Architecture:
    return Architecture(
        denoiser=Part("diffusers", "UNet2DConditionModel", {**_UNET, **changes}),
        encoders={"text_encoder": CLIP_L, "text_encoder_2": _OPEN_CLIP_BIG_G},
        vae=KL_VAE,
        tokens=77,
    )


def _tiny(distilled: bool) -> Any:
    import diffusers
    import transformers

    time_width = 8
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * tiny.WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=_TIME_IDS * time_width + tiny.WIDTH,
        time_cond_proj_dim=tiny.WIDTH if distilled else None,
    )
    kind = diffusers.LCMScheduler if distilled else diffusers.EulerDiscreteScheduler
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=tiny.vae(),
        text_encoder=transformers.CLIPTextModel(tiny.clip_config()),
        text_encoder_2=transformers.CLIPTextModelWithProjection(tiny.clip_config()),
        tokenizer=tiny.clip_tokenizer(),
        tokenizer_2=tiny.clip_tokenizer(),
        scheduler=kind(**tiny.SD_BETAS),
        add_watermarker=False,
    )


def _inputs(config: Config, batch: int, tokens: int, height: int, width: int) -> dict[str, Any]:
    """As of Stable Diffusion, and two conditions more.

    ``text_embeds`` [batch, channels] and ``time_ids`` [batch, 6].
    """
    conditions = {
        "text_embeds": empty(batch, *_pooled(config, tokens)),
        "time_ids": empty(batch, _TIME_IDS),
    }
    return unet_inputs(config, batch, tokens, height, width) | {"added_cond_kwargs": conditions}


def _pooled(config: Config, tokens: int) -> tuple[int]:
    """Shape of one pooled caption: (channels,)."""
    times = _TIME_IDS * config["addition_time_embed_dim"]
    return (config["projection_class_embeddings_input_dim"] - times,)


_NO_WATERMARK = {"add_watermarker": False}

FAMILY = Family(
    entries=(
        Entry(
            "sdxl",
            "StableDiffusionXLPipeline",
            "stabilityai/stable-diffusion-xl-base-1.0",
            steps=25,
            guidance_scale=7.5,
            height=1024,
            width=1024,
            scheduler="DPMSolverMultistepScheduler",
            variant="fp16",
            options=_NO_WATERMARK,
            architecture=_architecture(),
            tiny=partial(_tiny, distilled=False),
            license="openrail++",
        ),
        Entry(
            "lcm_sdxl",
            "StableDiffusionXLPipeline",
            "stabilityai/stable-diffusion-xl-base-1.0",
            steps=4,
            guidance_scale=8.0,
            height=1024,
            width=1024,
            scheduler="LCMScheduler",
            variant="fp16",
            unet="latent-consistency/lcm-sdxl",
            options=_NO_WATERMARK,
            architecture=_architecture(time_cond_proj_dim=256),
            tiny=partial(_tiny, distilled=True),
            license="openrail++",
        ),
    ),
    denoiser="unet",
    inputs=_inputs,
    # diffusers 0.42, pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py
    encoded={
        "prompt_embeds": caption,
        "negative_prompt_embeds": caption,
        "pooled_prompt_embeds": _pooled,
        "negative_pooled_prompt_embeds": _pooled,
    },
    bare=dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    | _NO_WATERMARK,
)
