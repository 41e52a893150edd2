"""Stable Video Diffusion: a picture becomes the first frame of a video.

Checkpoint and settings: github.com/HaozheLiu-ST/T-GATE, README, and the model's card.
"""

from collections.abc import Mapping
from typing import Any

from tgate_batch.config import ResolvedSampling
from tgate_batch.models import tiny
from tgate_batch.models.architecture import KL_VAE, Architecture, ComponentSpec
from tgate_batch.models.family import ComponentConfig, Condition, Entry, Family, empty, first_image
from tgate_batch.records import Prompt

_CLIP_H_VISION = ComponentSpec(
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
_UNET = ComponentSpec(
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
)
_VAE = ComponentSpec(  # the encoder is that of Stable Diffusion
    "diffusers",
    "AutoencoderKLTemporalDecoder",
    {key: value for key, value in KL_VAE.config.items() if key != "up_block_types"},
)


def _tiny() -> Any:
    import diffusers
    import transformers

    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4),
        cross_attention_dim=tiny.WIDTH,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=2,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        sample_size=64,
    )
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=tiny.WIDTH,
            intermediate_size=64,
            projection_dim=tiny.WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=224,
            patch_size=32,
        )
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        **tiny.SD_BETAS,
    )
    return diffusers.StableVideoDiffusionPipeline(
        unet=unet,
        vae=vae,
        image_encoder=encoder,
        feature_extractor=transformers.CLIPImageProcessor(),
        scheduler=scheduler,
    )


def _inputs(
    config: ComponentConfig, batch: int, tokens: int, height: int, width: int
) -> dict[str, Any]:
    """Arguments of a UNetSpatioTemporalConditionModel on the meta device.

    ``sample`` [batch, frames, channels, height, width]; ``timestep`` []; ``encoder_hidden_states``
    [batch, 1, channels of the encoded picture]; ``added_time_ids`` [batch, 3].
    """
    frames = config["num_frames"]
    return {
        "sample": empty(batch, frames, config["in_channels"], height, width),
        "timestep": empty(),
        "encoder_hidden_states": empty(batch, tokens, config["cross_attention_dim"]),
        "added_time_ids": empty(batch, 3),
    }


def _picture(prompt: Prompt, sampling: ResolvedSampling) -> Condition:
    return {"image": first_image(prompt, sampling)}


def _decode(pipeline: Any, latents: Any) -> Any:
    """Latents [n, frames, channels, h, w] -> pixels, float32 [n, frames, height, width, 3].

    Video by video: the pipeline's chunks of frames would mix the end of one with the next.
    """
    import torch

    parts = [
        pipeline.decode_latents(video, latents.shape[1], decode_chunk_size=8)
        for video in latents.split(1)
    ]
    return torch.cat(parts).permute(0, 2, 3, 4, 1).float()


def _one_token(row: Entry, encoders: Mapping[str, ComponentSpec]) -> int:
    """The encoded picture."""
    return 1


def _encoder_inputs(config: ComponentConfig, batch: int, tokens: int) -> dict[str, Any]:
    """``pixel_values`` [batch, 3, side, side]."""
    side = config["image_size"]
    return {"pixel_values": empty(batch, 3, side, side)}


def _decoder_inputs(architecture: Architecture, height: int, width: int) -> dict[str, Any]:
    """``z`` [frames, channels, height, width] of one video, and the number of its frames."""
    frames = architecture.denoiser.config["num_frames"]
    channels = architecture.vae.config.get("latent_channels", 4)
    return {"z": empty(frames, channels, height, width), "num_frames": frames}


FAMILY = Family(
    entries=(
        Entry(
            "svd",
            "StableVideoDiffusionPipeline",
            "stabilityai/stable-video-diffusion-img2vid-xt",
            steps=25,
            guidance_scale=3.0,
            height=576,
            width=1024,
            variant="fp16",
            architecture=Architecture(_UNET, {"image_encoder": _CLIP_H_VISION}, _VAE, tokens=1),
            tiny=_tiny,
            license="other: Stability AI's community licence for Stable Video Diffusion",
        ),
    ),
    denoiser="unet",
    inputs=_inputs,
    condition=_picture,
    guidance="max_guidance_scale",
    draws="video",
    decode=_decode,
    tokens=_one_token,
    encoder_inputs=_encoder_inputs,
    decoder_inputs=_decoder_inputs,
    loras=False,
)
