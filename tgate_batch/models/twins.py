"""Tiny twins: every pipeline of the catalogue with random weights, small enough for a CPU.

A twin has its original's classes, scheduler and inputs, so it loads and runs through the same code
as a real checkpoint; its pictures are noise. Weights are drawn from a fixed seed.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

_WIDTH = 32  # channels of every text and picture embedding
_CLIP_LETTERS = "<|startoftext|>", "<|endoftext|>"


def save_twin(name: str, folder: str | Path) -> Path:
    """Writes the twin of catalogue row ``name`` into ``folder`` as a diffusers pipeline.

    Raises ValueError for a name that has none.
    """
    folder = Path(folder)
    twin(name).save_pretrained(folder, safe_serialization=True)
    return folder


def twin(name: str) -> diffusers.DiffusionPipeline:
    """The twin itself, float32 on the CPU; raises ValueError for a name that has none."""
    if name not in _MAKERS:
        raise ValueError(f"there is no twin of {name!r}; choose one of: {', '.join(_MAKERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = _MAKERS[name]()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sd(scheduler: Any, head_dim: int | tuple[int, ...], linear: bool) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=head_dim,
        cross_attention_dim=_WIDTH,
        use_linear_projection=linear,
    )
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(_clip_config()),
        tokenizer=_clip_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd15() -> Any:
    return _sd(diffusers.PNDMScheduler(skip_prk_steps=True, **_SD_BETAS), 4, linear=False)


def _sd21() -> Any:
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, **_SD_BETAS
    )
    return _sd(scheduler, (2, 4), linear=True)


def _sdxl(distilled: bool = False) -> Any:
    time_ids, time_width = 6, 8
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
        cross_attention_dim=2 * _WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=time_ids * time_width + _WIDTH,
        time_cond_proj_dim=_WIDTH if distilled else None,
    )
    if distilled:
        scheduler = diffusers.LCMScheduler(**_SD_BETAS)
    else:
        scheduler = diffusers.EulerDiscreteScheduler(**_SD_BETAS)
    return diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(_clip_config()),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _pixart(pipeline: Any, scheduler: Any) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        num_attention_heads=3,
        attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=_WIDTH,
        in_channels=4,
        out_channels=8,
    )
    tokenizer = _t5_tokenizer()
    text_encoder = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer), d_model=_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4
        )
    )
    return pipeline(
        transformer=transformer,
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
    )


def _pixart_alpha() -> Any:
    return _pixart(diffusers.PixArtAlphaPipeline, diffusers.DPMSolverMultistepScheduler())


def _pixart_sigma() -> Any:
    return _pixart(diffusers.PixArtSigmaPipeline, diffusers.DPMSolverMultistepScheduler())


def _lcm_pixart_alpha() -> Any:
    return _pixart(diffusers.PixArtAlphaPipeline, diffusers.LCMScheduler())


def _svd() -> Any:
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4),
        cross_attention_dim=_WIDTH,
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
            hidden_size=_WIDTH,
            intermediate_size=64,
            projection_dim=_WIDTH,
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
        **_SD_BETAS,
    )
    return diffusers.StableVideoDiffusionPipeline(
        unet=unet,
        vae=vae,
        image_encoder=encoder,
        feature_extractor=transformers.CLIPImageProcessor(),
        scheduler=scheduler,
    )


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )


def _clip_vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [*letters, *(f"{letter}</w>" for letter in letters), *_CLIP_LETTERS]


def _clip_config() -> Any:
    size = len(_clip_vocabulary())
    return transformers.CLIPTextConfig(
        vocab_size=size,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        hidden_size=_WIDTH,
        intermediate_size=64,
        projection_dim=_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
    )


def _clip_tokenizer() -> Any:
    """CLIP's byte-level tokenizer before any merge: a token is a letter."""
    vocabulary = {token: index for index, token in enumerate(_clip_vocabulary())}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    """A unigram tokenizer whose pieces are the printable ASCII letters."""
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


_SD_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

_MAKERS = {
    "sd15": _sd15,
    "sd21": _sd21,
    "sdxl": _sdxl,
    "pixart_alpha": _pixart_alpha,
    "pixart_sigma": _pixart_sigma,
    "lcm_sdxl": lambda: _sdxl(distilled=True),
    "lcm_pixart_alpha": _lcm_pixart_alpha,
    "svd": _svd,
}
