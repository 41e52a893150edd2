"""Kolors: SDXL's U-Net behind a language model, for Chinese and English prompts.

Settings: the model's card. The ``config.json`` files of the checkpoint were not at hand: *the
numbers are typed from indirect sources*. The U-Net is SDXL's with three of its own, from readers of
the checkpoint (kijai/ComfyUI-KwaiKolorsWrapper, MinusZoneAI/ComfyUI-Kolors-MZ: ``adm_in_channels``
5632) and from diffusers' KolorsPipeline; its parameters are the published 2.58 billion. The text
encoder is THUDM/chatglm3-6b, as readers of its ``config.json`` have it.
"""

from collections.abc import Mapping
from typing import Any

from tgate_batch.models import tiny
from tgate_batch.models.architecture import KL_VAE, Architecture, ComponentSpec
from tgate_batch.models.family import Entry, Family
from tgate_batch.models.sd import caption
from tgate_batch.models.sdxl import UNET, inputs, pooled, tiny_unet

_TOKENS = 256  # the pipeline's own `max_sequence_length` (diffusers 0.42, pipelines/kolors/)
_CHATGLM = ComponentSpec(
    "diffusers.pipelines.kolors",
    "ChatGLMModel",
    {
        "num_layers": 28,
        "hidden_size": 4096,
        "ffn_hidden_size": 13696,
        "kv_channels": 128,
        "num_attention_heads": 32,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "add_qkv_bias": True,
        "padded_vocab_size": 65024,
        "seq_length": 32768,
        "original_rope": True,
    },
)
_UNET = ComponentSpec(
    "diffusers",
    "UNet2DConditionModel",
    {
        **UNET,
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": 5632,  # of the pooled caption 4096
    },
)


def _tiny() -> Any:
    import diffusers

    unet = tiny_unet(
        cross_attention_dim=tiny.WIDTH,
        encoder_hid_dim=tiny.WIDTH,
        encoder_hid_dim_type="text_proj",
    )
    tokenizer = tiny.chatglm_tokenizer()
    return diffusers.KolorsPipeline(
        unet=unet,
        vae=tiny.vae(),
        text_encoder=_tiny_chatglm(tokenizer.vocab_size),
        tokenizer=tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **tiny.SD_BETAS),
    )


def _tiny_chatglm(letters: int) -> Any:
    import torch
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, RMSNorm

    settings = ChatGLMConfig(
        **{
            **_CHATGLM.config,
            "num_layers": 2,
            "hidden_size": tiny.WIDTH,
            "ffn_hidden_size": 64,
            "kv_channels": 8,
            "num_attention_heads": 4,
            "padded_vocab_size": letters,
            "seq_length": _TOKENS,
        }
    )
    encoder = ChatGLMModel(settings, empty_init=False)
    for module in encoder.modules():
        if isinstance(module, RMSNorm):  # which leaves its weights as memory happens to be
            torch.nn.init.ones_(module.weight)
    return encoder


def _tokens(row: Entry, encoders: Mapping[str, ComponentSpec]) -> int:
    return _TOKENS


FAMILY = Family(
    entries=(
        Entry(
            "kolors",
            "KolorsPipeline",
            "Kwai-Kolors/Kolors-diffusers",
            steps=50,
            guidance_scale=5.0,
            height=1024,
            width=1024,
            variant="fp16",
            architecture=Architecture(
                _UNET, encoders={"text_encoder": _CHATGLM}, vae=KL_VAE, tokens=_TOKENS
            ),
            tiny=_tiny,
            license="apache-2.0; commercial use of the weights asks for a registration",
        ),
    ),
    denoiser="unet",
    mixes_guidance=True,
    inputs=inputs,
    # diffusers 0.42, pipelines/kolors/pipeline_kolors.py
    encoded={
        "prompt_embeds": caption,
        "negative_prompt_embeds": caption,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": pooled,
    },
    tokens=_tokens,
    bare=dict.fromkeys(("vae", "text_encoder", "tokenizer")),
)
