"""Tiny pipelines of random weights, for classes without a family file.

A pipeline is a table of its components. Each part is a class of diffusers or transformers with a
small configuration; parts that several pipelines share have a function.
"""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.models import tiny

Part = Callable[[], Any]
_W = tiny.WIDTH
_CHAT = (  # a chat template of the common form
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MARKS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<think>", "</think>"),
)


def build(class_name: str) -> Any:
    """The tiny pipeline of a class, float32 on the CPU; raises UserError if there is none."""
    import diffusers

    from tgate_batch.gate.branches import denoisers

    if class_name not in PIPELINES:
        raise UserError(f"there is no tiny {class_name}. Fix: add it to {__name__}.PIPELINES")
    kind = getattr(diffusers, class_name)
    parts = {name: make() for name, make in PIPELINES[class_name].items()}
    for name, taken in signature(kind.__init__).parameters.items():
        if name in parts or name == "self" or taken.default is not Parameter.empty:
            continue
        if taken.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL):
            continue
        parts[name] = _flow() if name == "scheduler" else None
    made = kind(**parts)
    for network in denoisers(made).values():
        _fill_zeros(network)
    return made


def _fill_zeros(network: Any) -> None:
    """Gives weights that begin at zero random values, so that every input matters."""
    import torch

    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim > 1 and not weights.any():
                weights.normal_(std=0.1)


def _part(name: str, **config: Any) -> Part:
    """A class of diffusers with this configuration."""

    def make() -> Any:
        import diffusers

        return getattr(diffusers, name)(**config)

    return make


def _text(name: str, config_name: str, **config: Any) -> Part:
    """A class of transformers with this configuration."""

    def make() -> Any:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config_name)(**config))

    return make


def _flow(**config: Any) -> Any:
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def _vae(**changes: Any) -> Part:
    return lambda: tiny.vae(**changes)


def _clip(name: str = "CLIPTextModel", **changes: Any) -> Part:
    def make() -> Any:
        import transformers

        config = tiny.clip_config()
        config.update(changes)
        return getattr(transformers, name)(config)

    return make


def _t5(name: str = "T5EncoderModel", width: int = _W, **changes: Any) -> Part:
    def make() -> Any:
        import transformers

        config = getattr(transformers, name.replace("EncoderModel", "Config"))
        sizes = {"d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        return getattr(transformers, name)(config(vocab_size=len(tiny.t5_tokenizer()), **sizes))

    return make


def _letters() -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    return {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *_MARKS])}


def _qwen_tokenizer() -> Any:
    """Qwen's byte-level tokenizer before any merge, with its marks and a chat template."""
    import transformers

    tokenizer = transformers.Qwen2Tokenizer(vocab=_letters(), merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS)})
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = _CHAT
    return tokenizer


def _glm_tokenizer() -> Any:
    """A tokenizer of bytes that begins every text with two marks, as GLM's does."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.BPE(vocab=_letters(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    start = [(mark, _letters()[mark]) for mark in _MARKS[1:3]]
    made.post_processor = processors.TemplateProcessing(
        single=" ".join([*(mark for mark, _ in start), "$A"]), special_tokens=start
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=_MARKS[0], model_max_length=1024, padding_side="left"
    )


_VOCABULARY = 256 + len(_MARKS)
_SMALL = {
    "hidden_size": _W,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 2048,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
}


def _decoder(name: str, config_name: str, **changes: Any) -> Part:
    """A language model of ``_W`` channels, two layers, for ``_qwen_tokenizer``."""
    return _text(name, config_name, **{**_SMALL, **changes})


def _bert() -> Any:
    import transformers

    sizes = {key: _SMALL[key] for key in ("intermediate_size", "num_hidden_layers")}
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=128,
            hidden_size=_W,
            num_attention_heads=4,
            max_position_embeddings=512,
            **sizes,
        )
    )


def _bert_tokenizer() -> Any:
    import transformers

    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*words, *letters])}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=512)


def _qwen_vl() -> Any:
    import transformers

    text = {
        **_SMALL,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
    }
    vision = {"depth": 1, "hidden_size": _W, "intermediate_size": 32, "num_heads": 2}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config={**vision, "out_hidden_size": _W}
        )
    )


def _qwen3_vl(name: str) -> Part:
    sizes = {**_SMALL, "head_dim": 8}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    vision = {"depth": 1, "hidden_size": _W, "intermediate_size": 32, "num_heads": 2}
    return _text(
        name,
        "Qwen3VLConfig",
        text_config={**sizes, "rope_scaling": rope, "rope_theta": 1000000.0},
        vision_config={**vision, "out_hidden_size": _W, "deepstack_visual_indexes": [0]},
    )


def _qwen_vl_processor() -> Any:
    import transformers

    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=_qwen_tokenizer(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=_CHAT,
    )


def _byt5_tokenizer() -> Any:
    import transformers

    return transformers.ByT5Tokenizer()


def _guider(name: str) -> Part:
    def make() -> Any:
        import diffusers

        return getattr(diffusers.guiders, name)()

    return make


def _kandinsky5(channels: int) -> Part:
    return _part(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=channels,
        in_text_dim=_W,
        in_text_dim2=_W,
        time_dim=16,
        out_visual_dim=channels,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(2, 2, 4),
        visual_cond=False,
        attention_type="regular",
    )


def _unclip_normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(embedding_dim=_W)


_CLIP_PAIR = {"text_encoder": _clip(), "tokenizer": tiny.clip_tokenizer}
_T5 = {"text_encoder": _t5(), "tokenizer": tiny.t5_tokenizer}
_GEMMA_SIZES = {
    **{key: _SMALL[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")},
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 128,
}
_FLUX = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
_SD3_VAE = _vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06)
_STATS = {"latents_mean": [0.0, 0.1, -0.1, 0.0], "latents_std": [1.0, 1.5, 1.0, 2.0]}
_QWEN_VAE = _part(
    "AutoencoderKLQwenImage",
    base_dim=8,
    z_dim=4,
    dim_mult=[1, 2, 2, 2],
    num_res_blocks=1,
    temperal_downsample=[False, True, True],
    **_STATS,
)

_WAN_VAE = _part(
    "AutoencoderKLWan", base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **_STATS
)
_FLUX2_VAE = _part(
    "AutoencoderKLFlux2",
    block_out_channels=(8,) * 4,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=4,
    sample_size=64,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
_LTX_VAE = _part(
    "AutoencoderKLLTXVideo",
    latent_channels=8,
    block_out_channels=(8,) * 4,
    decoder_block_out_channels=(8,) * 4,
    layers_per_block=(1,) * 5,
    decoder_layers_per_block=(1,) * 5,
    spatio_temporal_scaling=(True, True, False, False),
    decoder_spatio_temporal_scaling=(True, True, False, False),
    decoder_inject_noise=(False,) * 5,
    upsample_residual=(False,) * 4,
    upsample_factor=(1,) * 4,
    patch_size=1,
    patch_size_t=1,
)
_HUNYUAN_VAE = _part(
    "AutoencoderKLHunyuanVideo",
    latent_channels=4,
    down_block_types=("HunyuanVideoDownBlock3D",) * 4,
    up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    block_out_channels=(8,) * 4,
    layers_per_block=1,
    norm_num_groups=4,
)
_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": _W,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 64,
}
_FLUX2 = _part(
    "Flux2Transformer2DModel",
    **_FLUX,
    patch_size=1,
    in_channels=16,
    num_single_layers=1,
    joint_attention_dim=3 * _W,
    timestep_guidance_channels=32,
    axes_dims_rope=[4, 4, 4, 4],
    guidance_embeds=False,
)
_KLEIN = {
    "transformer": _FLUX2,
    "vae": _FLUX2_VAE,
    "text_encoder": _decoder("Qwen3ForCausalLM", "Qwen3Config", head_dim=8, num_hidden_layers=28),
    "tokenizer": _qwen_tokenizer,
}
_UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
_SD_UNET = {**_UNET, "cross_attention_dim": _W}
_SD_PARTS = {
    "unet": _part("UNet2DConditionModel", **_SD_UNET),
    "vae": _vae(),
    **_CLIP_PAIR,
    "scheduler": _part("DDIMScheduler", **tiny.SD_BETAS),
}
_SD_LIKE = {**_SD_PARTS, "safety_checker": lambda: None, "feature_extractor": lambda: None}
_SDXL_UNET = _part(
    "UNet2DConditionModel",
    **{**_UNET, "cross_attention_dim": 2 * _W},
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + _W,
    use_linear_projection=True,
)
_SDXL_LIKE = {
    "unet": _SDXL_UNET,
    "vae": _vae(),
    **_CLIP_PAIR,
    "text_encoder_2": _clip("CLIPTextModelWithProjection"),
    "tokenizer_2": tiny.clip_tokenizer,
    "scheduler": _part("EulerDiscreteScheduler", **tiny.SD_BETAS),
}
_ADAPTER = _part(
    "MotionAdapter",
    block_out_channels=(8, 16),
    motion_layers_per_block=1,
    motion_norm_num_groups=4,
    motion_num_attention_heads=2,
)
_GEMMA2 = {
    "text_encoder": _text("Gemma2Model", "Gemma2Config", **_GEMMA_SIZES),
    "tokenizer": tiny.gemma_tokenizer,
}
_SANA_VAE = _part(
    "AutoencoderDC",
    in_channels=3,
    latent_channels=4,
    attention_head_dim=2,
    encoder_block_types=("ResBlock",) * 6,
    decoder_block_types=("ResBlock",) * 6,
    encoder_block_out_channels=(8,) * 6,
    decoder_block_out_channels=(8,) * 6,
    encoder_qkv_multiscales=((),) * 6,
    decoder_qkv_multiscales=((),) * 6,
    encoder_layers_per_block=(1,) * 6,
    decoder_layers_per_block=(1,) * 6,
    downsample_block_type="conv",
    upsample_block_type="interpolate",
    decoder_norm_types="rms_norm",
    decoder_act_fns="silu",
)
_SANA = {
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": _W,
    "sample_size": 2,
}
_PIXART = _part(
    "PixArtTransformer2DModel",
    sample_size=8,
    num_layers=2,
    patch_size=2,
    attention_head_dim=8,
    num_attention_heads=3,
    caption_channels=_W,
    in_channels=4,
    cross_attention_dim=24,
    out_channels=8,
    use_additional_conditions=False,
    norm_type="ada_norm_single",
)

PIPELINES: dict[str, Mapping[str, Part]] = {
    "FluxPipeline": {
        "transformer": _part(
            "FluxTransformer2DModel",
            **_FLUX,
            patch_size=1,
            in_channels=16,
            num_single_layers=1,
            joint_attention_dim=_W,
            pooled_projection_dim=_W,
            axes_dims_rope=[4, 4, 8],
        ),
        "vae": _SD3_VAE,
        **_CLIP_PAIR,
        "text_encoder_2": _t5(),
        "tokenizer_2": tiny.t5_tokenizer,
    },
    "StableDiffusion3Pipeline": {
        "transformer": _part(
            "SD3Transformer2DModel",
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=_W,
            joint_attention_dim=2 * _W,
            pooled_projection_dim=2 * _W,
            out_channels=4,
            pos_embed_max_size=32,
        ),
        "vae": _SD3_VAE,
        "text_encoder": _clip("CLIPTextModelWithProjection"),
        "tokenizer": tiny.clip_tokenizer,
        "text_encoder_2": _clip("CLIPTextModelWithProjection"),
        "tokenizer_2": tiny.clip_tokenizer,
        "text_encoder_3": _t5(width=2 * _W),
        "tokenizer_3": tiny.t5_tokenizer,
    },
    "QwenImagePipeline": {
        "transformer": _part(
            "QwenImageTransformer2DModel",
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=_W,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        "vae": _QWEN_VAE,
        "text_encoder": _qwen_vl,
        "tokenizer": _qwen_tokenizer,
    },
    "ZImagePipeline": {
        "transformer": _part(
            "ZImageTransformer2DModel",
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=_W,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=_W,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        ),
        "vae": _vae(shift_factor=0.1),
        "text_encoder": _decoder("Qwen3Model", "Qwen3Config", head_dim=8),
        "tokenizer": _qwen_tokenizer,
    },
    "CogView4Pipeline": {
        "transformer": _part(
            "CogView4Transformer2DModel",
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            out_channels=4,
            text_embed_dim=_W,
            time_embed_dim=8,
            condition_dim=4,
        ),
        "vae": _vae(),
        "text_encoder": _decoder("GlmForCausalLM", "GlmConfig", head_dim=8),
        "tokenizer": _glm_tokenizer,
        "scheduler": lambda: _flow(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    },
    "HunyuanDiTPipeline": {
        "transformer": _part(
            "HunyuanDiT2DModel",
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=_W,
            cross_attention_dim_t5=_W,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        ),
        "vae": _vae(),
        "text_encoder": _bert,
        "tokenizer": _bert_tokenizer,
        "text_encoder_2": _t5(),
        "tokenizer_2": tiny.t5_tokenizer,
        "scheduler": _part("DDPMScheduler"),
    },
    "ChromaPipeline": {
        "transformer": _part(
            "ChromaTransformer2DModel",
            **_FLUX,
            patch_size=1,
            in_channels=16,
            num_single_layers=1,
            joint_attention_dim=_W,
            axes_dims_rope=[4, 4, 8],
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        "vae": _SD3_VAE,
        **_T5,
    },
    "AuraFlowPipeline": {
        "transformer": _part(
            "AuraFlowTransformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=_W,
            joint_attention_dim=_W,
            out_channels=4,
            pos_embed_max_size=256,
        ),
        "vae": _vae(),
        "text_encoder": _t5("UMT5EncoderModel"),
        "tokenizer": tiny.t5_tokenizer,
    },
    "BriaPipeline": {
        "transformer": _part(
            "BriaTransformer2DModel",
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=_W,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        "vae": _vae(shift_factor=0.0),
        **_T5,
    },
    "OvisImagePipeline": {
        "transformer": _part(
            "OvisImageTransformer2DModel",
            **_FLUX,
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_single_layers=1,
            joint_attention_dim=_W,
            axes_dims_rope=(4, 4, 8),
        ),
        "vae": _SD3_VAE,
        "text_encoder": _decoder("Qwen3Model", "Qwen3Config", head_dim=8),
        "tokenizer": _qwen_tokenizer,
    },
    "CogView3PlusPipeline": {
        "transformer": _part(
            "CogView3PlusTransformer2DModel",
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=_W,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=8,
            sample_size=8,
        ),
        "vae": _vae(),
        **_T5,
        "scheduler": _part("CogVideoXDDIMScheduler"),
    },
    "Lumina2Pipeline": {
        "transformer": _part(
            "Lumina2Transformer2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=[4, 2, 2],
            axes_lens=[1024, 64, 64],
            cap_feat_dim=_W,
        ),
        "vae": _SD3_VAE,
        **_GEMMA2,
    },
    "LuminaPipeline": {
        "transformer": _part(
            "LuminaNextDiT2DModel",
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            cross_attention_dim=_W,
        ),
        "vae": _vae(),
        "text_encoder": _text("GemmaForCausalLM", "GemmaConfig", **_GEMMA_SIZES),
        "tokenizer": tiny.t5_tokenizer,  # it ends every text with a mark, also an empty one
    },
    "Flux2KleinPipeline": _KLEIN,
    "Flux2KleinKVPipeline": _KLEIN,
    "Krea2Pipeline": {
        "transformer": _part(
            "Krea2Transformer2DModel",
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=_W,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        "vae": _QWEN_VAE,
        "text_encoder": _qwen3_vl("Qwen3VLModel"),
        "tokenizer": _qwen_tokenizer,
        "text_encoder_select_layers": lambda: (0, 1, 2),
        "scheduler": lambda: _flow(use_dynamic_shifting=True),
    },
    "HunyuanImagePipeline": {
        "transformer": _part(
            "HunyuanImageTransformer2DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=_W,
            text_embed_2_dim=_W,
            rope_axes_dim=(4, 4),
        ),
        "vae": _part(
            "AutoencoderKLHunyuanImage",
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            scaling_factor=0.5,
            spatial_compression_ratio=8,
            sample_size=64,
        ),
        "text_encoder": _qwen_vl,
        "tokenizer": _qwen_tokenizer,
        "text_encoder_2": _t5(),
        "tokenizer_2": _byt5_tokenizer,
        "guider": _guider("ClassifierFreeGuidance"),
        "ocr_guider": _guider("ClassifierFreeGuidance"),
    },
    "HiDreamImagePipeline": {
        "transformer": _part(
            "HiDreamImageTransformer2DModel",
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[_W, _W],
            text_emb_dim=2 * _W,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
        "vae": _vae(shift_factor=0.1),
        "text_encoder": _clip("CLIPTextModelWithProjection", max_position_embeddings=128),
        "tokenizer": tiny.clip_tokenizer,
        "text_encoder_2": _clip("CLIPTextModelWithProjection", max_position_embeddings=128),
        "tokenizer_2": tiny.clip_tokenizer,
        "text_encoder_3": _t5(),
        "tokenizer_3": tiny.t5_tokenizer,
        "text_encoder_4": _decoder("LlamaForCausalLM", "LlamaConfig"),
        "tokenizer_4": _qwen_tokenizer,
    },
    "Kandinsky3Pipeline": {
        "unet": _part(
            "Kandinsky3UNet",
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=_W,
        ),
        "movq": _part(
            "VQModel",
            block_out_channels=[32, 32, 32, 32],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=32,
            num_vq_embeddings=12,
            vq_embed_dim=4,
            norm_type="spatial",
        ),
        **_T5,
        "scheduler": _part("DDPMScheduler"),
    },
    "Kandinsky5T2IPipeline": {
        "transformer": _kandinsky5(4),
        "vae": _vae(shift_factor=0.1),
        "text_encoder": _qwen_vl,
        "tokenizer": _qwen_vl_processor,
        "text_encoder_2": _clip(),
        "tokenizer_2": tiny.clip_tokenizer,
    },
    "Kandinsky5T2VPipeline": {
        "transformer": _kandinsky5(4),
        "vae": _HUNYUAN_VAE,
        "text_encoder": _qwen_vl,
        "tokenizer": _qwen_vl_processor,
        "text_encoder_2": _clip(),
        "tokenizer_2": tiny.clip_tokenizer,
    },
    "SanaPAGPipeline": {
        "transformer": _part("SanaTransformer2DModel", **_SANA),
        "vae": _SANA_VAE,
        **_GEMMA2,
    },
    "SanaVideoPipeline": {
        "transformer": _part(
            "SanaVideoTransformer3DModel",
            **{
                **_SANA,
                "patch_size": (1, 2, 2),
                "attention_head_dim": 12,
                "cross_attention_head_dim": 12,
                "cross_attention_dim": 24,
                "sample_size": 8,
            },
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        ),
        "vae": _WAN_VAE,
        **_GEMMA2,
        "scheduler": _part("DPMSolverMultistepScheduler"),
    },
    "LatentConsistencyModelPipeline": {
        **_SD_LIKE,
        "unet": _part("UNet2DConditionModel", **_SD_UNET, time_cond_proj_dim=_W),
        "scheduler": _part("LCMScheduler"),
    },
    "LDMTextToImagePipeline": {
        "unet": _part("UNet2DConditionModel", **_SD_UNET),
        "vqvae": _vae(),
        "bert": _clip(),
        "tokenizer": tiny.clip_tokenizer,
        "scheduler": _part("DDIMScheduler"),
    },
    "StableDiffusionPAGPipeline": _SD_LIKE,
    "StableDiffusionSAGPipeline": _SD_LIKE,
    "StableDiffusionPanoramaPipeline": _SD_LIKE,
    "StableDiffusionParadigmsPipeline": {
        **_SD_LIKE,
        "scheduler": _part("DDIMParallelScheduler", **tiny.SD_BETAS),
    },
    "SemanticStableDiffusionPipeline": _SD_LIKE,
    "StableDiffusionXLPAGPipeline": _SDXL_LIKE,
    "AnimateDiffPipeline": {**_SD_PARTS, "motion_adapter": _ADAPTER},
    "AnimateDiffPAGPipeline": {**_SD_PARTS, "motion_adapter": _ADAPTER},
    "AnimateDiffSDXLPipeline": {
        **_SDXL_LIKE,
        "motion_adapter": _part(
            "MotionAdapter",
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=2,
            use_motion_mid_block=False,
        ),
    },
    "StableUnCLIPPipeline": {
        "prior_tokenizer": tiny.clip_tokenizer,
        "prior_text_encoder": _clip("CLIPTextModelWithProjection"),
        "prior": _part(
            "PriorTransformer",
            num_attention_heads=2,
            attention_head_dim=12,
            embedding_dim=_W,
            num_layers=1,
        ),
        "prior_scheduler": _part(
            "DDPMScheduler",
            variance_type="fixed_small_log",
            prediction_type="sample",
            clip_sample_range=5.0,
            beta_schedule="squaredcos_cap_v2",
        ),
        "image_normalizer": _unclip_normalizer,
        "image_noising_scheduler": _part("DDPMScheduler", beta_schedule="squaredcos_cap_v2"),
        **_CLIP_PAIR,
        "unet": _part(
            "UNet2DConditionModel",
            **_SD_UNET,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * _W,
            use_linear_projection=True,
        ),
        "scheduler": _part("DDIMScheduler"),
        "vae": _vae(),
    },
    "PixArtSigmaPAGPipeline": {
        "transformer": _PIXART,
        "vae": _vae(),
        **_T5,
        "scheduler": _part("DDIMScheduler"),
    },
    "IFPipeline": {
        **_T5,
        "unet": _part(
            "UNet2DConditionModel",
            sample_size=64,
            layers_per_block=1,
            block_out_channels=[16, 32],
            down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
            in_channels=3,
            out_channels=6,
            cross_attention_dim=_W,
            encoder_hid_dim=_W,
            attention_head_dim=8,
            norm_num_groups=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        ),
        "scheduler": _part("DDPMScheduler", variance_type="learned_range", thresholding=True),
    },
    "LTXPipeline": {
        "transformer": _part(
            "LTXVideoTransformer3DModel",
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=_W,
            num_layers=1,
            caption_channels=_W,
        ),
        "vae": _LTX_VAE,
        **_T5,
    },
    "CogVideoXPipeline": {
        "transformer": _part(
            "CogVideoXTransformer3DModel",
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=_W,
            num_layers=1,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            patch_size=2,
            max_text_seq_length=226,
        ),
        "vae": _part(
            "AutoencoderKLCogVideoX",
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8,) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        **_T5,
        "scheduler": _part("CogVideoXDDIMScheduler"),
    },
    "HunyuanVideoPipeline": {
        "transformer": _part(
            "HunyuanVideoTransformer3DModel",
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=_W,
            pooled_projection_dim=_W,
            rope_axes_dim=(2, 4, 4),
        ),
        "vae": _HUNYUAN_VAE,
        "text_encoder": _decoder("LlamaModel", "LlamaConfig"),
        "tokenizer": _qwen_tokenizer,
        "text_encoder_2": _clip(),
        "tokenizer_2": tiny.clip_tokenizer,
    },
    "LattePipeline": {
        "transformer": _part(
            "LatteTransformer3DModel",
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=_W,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
        ),
        "vae": _vae(),
        **_T5,
        "scheduler": _part("DDIMScheduler"),
    },
    "MochiPipeline": {
        "transformer": _part(
            "MochiTransformer3DModel",
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=_W,
            time_embed_dim=4,
            max_sequence_length=256,
        ),
        "vae": _part(
            "AutoencoderKLMochi",
            encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4,
            layers_per_block=(1,) * 5,
        ),
        **_T5,
    },
    "AnyFlowPipeline": {
        "transformer": _part(
            "AnyFlowTransformer3DModel", **_WAN, gate_value=0.25, deltatime_type="r"
        ),
        "vae": _WAN_VAE,
        "text_encoder": _t5("UMT5EncoderModel"),
        "tokenizer": tiny.t5_tokenizer,
        "scheduler": _part("FlowMapEulerDiscreteScheduler"),
    },
    "OmniGenPipeline": {
        "transformer": _part(
            "OmniGenTransformer2DModel",
            hidden_size=16,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=32,
            num_layers=1,
            in_channels=4,
            time_step_dim=4,
            rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
        ),
        "vae": _vae(),
        "tokenizer": _qwen_tokenizer,
        "scheduler": lambda: _flow(invert_sigmas=True, num_train_timesteps=1),
    },
}

for _name in ("StableDiffusion3", "HunyuanDiT"):  # the same networks with a third branch
    PIPELINES[f"{_name}PAGPipeline"] = PIPELINES[f"{_name}Pipeline"]
PIPELINES["LTXConditionPipeline"] = PIPELINES["LTXPipeline"]
