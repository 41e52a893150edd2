"""Stable Diffusion 1.5 and 2.1, and the embedded model.

Checkpoints and settings: github.com/HaozheLiu-ST/T-GATE, README, and the models' cards.
"""

from typing import Any

from tgate_batch import demo
from tgate_batch.models import tiny
from tgate_batch.models.architecture import CLIP_L, KL_VAE, Architecture, ComponentSpec
from tgate_batch.models.family import ComponentConfig, Entry, Family, empty

_OPEN_CLIP_H = ComponentSpec(
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


def _unet(**changes: Any) -> ComponentSpec:
    blocks = {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
    }
    return ComponentSpec("diffusers", "UNet2DConditionModel", {**blocks, **changes})


_SD15 = Architecture(  # stable-diffusion-v1-5/stable-diffusion-v1-5
    denoiser=_unet(sample_size=64, attention_head_dim=8, cross_attention_dim=768),
    encoders={"text_encoder": CLIP_L},
    vae=KL_VAE,
    tokens=77,
)
_SD21 = Architecture(  # stabilityai/stable-diffusion-2-1
    denoiser=_unet(
        sample_size=96,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    ),
    encoders={"text_encoder": _OPEN_CLIP_H},
    vae=KL_VAE,
    tokens=77,
)


def _tiny_sd15() -> Any:
    import diffusers

    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, **tiny.SD_BETAS)
    return _tiny(scheduler, head_dim=4, linear=False)


def _tiny_sd21() -> Any:
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, **tiny.SD_BETAS
    )
    return _tiny(scheduler, head_dim=(2, 4), linear=True)


def _tiny(scheduler: Any, head_dim: int | tuple[int, ...], linear: bool) -> Any:
    import diffusers
    import transformers

    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=head_dim,
        cross_attention_dim=tiny.WIDTH,
        use_linear_projection=linear,
    )
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=tiny.vae(),
        text_encoder=transformers.CLIPTextModel(tiny.clip_config()),
        tokenizer=tiny.clip_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def unet_inputs(
    config: ComponentConfig, batch: int, tokens: int, height: int, width: int
) -> dict[str, Any]:
    """Arguments of a UNet2DConditionModel on the meta device.

    ``sample`` [batch, channels, height, width]; ``timestep`` []; ``encoder_hidden_states`` [batch,
    tokens, caption channels]; of a distilled one ``timestep_cond`` [batch, channels] too.
    """
    inputs = {
        "sample": empty(batch, config["in_channels"], height, width),
        "timestep": empty(),
        "encoder_hidden_states": empty(batch, *caption(config, tokens)),
    }
    scale_width = config.get("time_cond_proj_dim")  # of a distilled one
    if scale_width is not None:
        inputs["timestep_cond"] = empty(batch, scale_width)
    return inputs


def caption(config: ComponentConfig, tokens: int) -> tuple[int, int]:
    """Shape of one encoded caption: (tokens, channels). A denoiser may project it first."""
    return tokens, config["encoder_hid_dim"] or config["cross_attention_dim"]


_NO_CHECKER = {"safety_checker": None, "requires_safety_checker": False}

FAMILY = Family(
    entries=(
        Entry(
            "demo",
            "StableDiffusionPipeline",
            str(demo.PATH),
            steps=25,
            guidance_scale=4.0,
            height=64,
            width=64,
            options=_NO_CHECKER,
            license="apache-2.0",
        ),
        Entry(
            "sd15",
            "StableDiffusionPipeline",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            steps=25,
            guidance_scale=7.5,
            height=512,
            width=512,
            scheduler="DPMSolverMultistepScheduler",
            variant="fp16",
            options=_NO_CHECKER,
            architecture=_SD15,
            tiny=_tiny_sd15,
            license="creativeml-openrail-m",
        ),
        Entry(
            "sd21",
            "StableDiffusionPipeline",
            "stabilityai/stable-diffusion-2-1",
            steps=25,
            guidance_scale=7.5,
            height=768,
            width=768,
            scheduler="DPMSolverMultistepScheduler",
            variant="fp16",
            architecture=_SD21,
            tiny=_tiny_sd21,
            license="openrail++",
        ),
    ),
    denoiser="unet",
    mixes_guidance=True,
    from_pictures=True,
    inputs=unet_inputs,
    # diffusers 0.42, pipelines/stable_diffusion/pipeline_stable_diffusion.py
    encoded={"prompt_embeds": caption, "negative_prompt_embeds": caption},
    bare={"text_encoder": None, "tokenizer": None, "vae": None, "feature_extractor": None}
    | _NO_CHECKER,
    single_files=True,
)
