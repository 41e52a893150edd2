"""Stable Diffusion XL, its latent consistency model, and models of its kind.

Checkpoints and settings: github.com/HaozheLiu-ST/T-GATE, README, and the models' cards. Where the
cards of SSD-1B and Vega leave the steps open, they are the pipeline's default.

Playground v2.5 is SDXL's U-Net trained anew ("the same architecture", says its card), with another
noise schedule and another scaling of latents. SSD-1B and Vega (arXiv 2401.02677) are SDXL without
some of its transformer layers and without the middle's attention. Their ``config.json`` files were
not at hand: *the numbers of layers are typed from an indirect source*, Comfy-Org/ComfyUI,
comfy/model_detection.py, which lists them by position (``transformer_depth``,
``transformer_depth_output``, ``transformer_depth_middle``). The parameters then are the published:
2.66 GB of float16 numbers (SSD-1B's file), 0.74 billion (Vega, in the paper).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from tgate_batch.models import tiny
from tgate_batch.models.architecture import CLIP_L, KL_VAE, Architecture, ComponentSpec
from tgate_batch.models.family import ComponentConfig, Entry, Family, empty
from tgate_batch.models.sd import caption, unet_inputs

_TIME_IDS = 6  # original size, crop and target size, two numbers each
UNET = {
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
_OPEN_CLIP_BIG_G = ComponentSpec(
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


_NO_MIDDLE_ATTENTION: dict[str, Any] = {"mid_block_type": "UNetMidBlock2D"}
_SSD_1B = {  # transformer layers: a block's number, or of each of its attentions
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
} | _NO_MIDDLE_ATTENTION
_VEGA = {
    "transformer_layers_per_block": (1, (1, 1), (2, 2)),
    "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
} | _NO_MIDDLE_ATTENTION


def _architecture(**changes: Any) -> Architecture:
    return Architecture(
        denoiser=ComponentSpec("diffusers", "UNet2DConditionModel", {**UNET, **changes}),
        encoders={"text_encoder": CLIP_L, "text_encoder_2": _OPEN_CLIP_BIG_G},
        vae=KL_VAE,
        tokens=77,
    )


def tiny_unet(**changes: Any) -> Any:
    """SDXL's U-Net in small; with other settings, if given."""
    import diffusers

    time_width = 8
    settings = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "cross_attention_dim": 2 * tiny.WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_width,
        "projection_class_embeddings_input_dim": _TIME_IDS * time_width + tiny.WIDTH,
    }
    return diffusers.UNet2DConditionModel(**settings | changes)


def _tiny(
    scheduler: str,
    betas: Mapping[str, Any] = tiny.SD_BETAS,
    vae: Mapping[str, Any] | None = None,
    **unet: Any,
) -> Any:
    import diffusers
    import transformers

    return diffusers.StableDiffusionXLPipeline(
        unet=tiny_unet(**unet),
        vae=tiny.vae(**vae or {}),
        text_encoder=transformers.CLIPTextModel(tiny.clip_config()),
        text_encoder_2=transformers.CLIPTextModelWithProjection(tiny.clip_config()),
        tokenizer=tiny.clip_tokenizer(),
        tokenizer_2=tiny.clip_tokenizer(),
        scheduler=getattr(diffusers, scheduler)(**betas),
        add_watermarker=False,
    )


def inputs(
    config: ComponentConfig, batch: int, tokens: int, height: int, width: int
) -> dict[str, Any]:
    """As of Stable Diffusion, and two conditions more.

    ``text_embeds`` [batch, channels] and ``time_ids`` [batch, 6].
    """
    conditions = {
        "text_embeds": empty(batch, *pooled(config, tokens)),
        "time_ids": empty(batch, _TIME_IDS),
    }
    return unet_inputs(config, batch, tokens, height, width) | {"added_cond_kwargs": conditions}


def pooled(config: ComponentConfig, tokens: int) -> tuple[int]:
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
            tiny=partial(_tiny, "EulerDiscreteScheduler"),
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
            tiny=partial(_tiny, "LCMScheduler", time_cond_proj_dim=tiny.WIDTH),
            license="openrail++",
            distilled=True,
        ),
        Entry(
            "playground25",
            "StableDiffusionXLPipeline",
            "playgroundai/playground-v2.5-1024px-aesthetic",
            steps=50,
            guidance_scale=3.0,
            height=1024,
            width=1024,
            variant="fp16",
            options=_NO_WATERMARK,
            architecture=_architecture(),
            tiny=partial(
                _tiny,
                "EDMDPMSolverMultistepScheduler",
                betas={"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
                vae={
                    "latents_mean": (-1.5, 2.0, -1.5, 2.5),
                    "latents_std": (8.5, 6.0, 6.5, 5.0),
                    "scaling_factor": 0.5,
                },
            ),
            license="other: playground-v2dot5-community",
        ),
        Entry(
            "ssd_1b",
            "StableDiffusionXLPipeline",
            "segmind/SSD-1B",
            steps=50,
            guidance_scale=9.0,
            height=1024,
            width=1024,
            variant="fp16",
            options=_NO_WATERMARK,
            architecture=_architecture(**_SSD_1B),
            tiny=partial(
                _tiny,
                "EulerDiscreteScheduler",
                transformer_layers_per_block=(1, (1, 2)),
                reverse_transformer_layers_per_block=((1, 1, 2), 1),
                **_NO_MIDDLE_ATTENTION,
            ),
        ),
        Entry(
            "vega",
            "StableDiffusionXLPipeline",
            "segmind/Segmind-Vega",
            steps=50,
            guidance_scale=9.0,
            height=1024,
            width=1024,
            variant="fp16",
            options=_NO_WATERMARK,
            architecture=_architecture(**_VEGA),
            tiny=partial(
                _tiny,
                "EulerDiscreteScheduler",
                transformer_layers_per_block=(1, (1, 1)),
                reverse_transformer_layers_per_block=((1, 1, 1), 1),
                **_NO_MIDDLE_ATTENTION,
            ),
            license="apache-2.0",
        ),
    ),
    denoiser="unet",
    mixes_guidance=True,
    from_pictures=True,
    inputs=inputs,
    # diffusers 0.42, pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py
    encoded={
        "prompt_embeds": caption,
        "negative_prompt_embeds": caption,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": pooled,
    },
    bare=dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    | _NO_WATERMARK,
    single_files=True,
)
