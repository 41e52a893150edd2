"""Catalogue rows of pipelines without a family file, and the networks of four of them.

Settings are those of diffusers 0.42: the example in a pipeline's file (``EXAMPLE_DOC_STRING``), its
page in ``docs/source/en/api/pipelines/``, or the default of its call, as the comment at each row
says. Licences are those that the checkpoints' cards name; None where no card was at hand.

Networks: the defaults of diffusers' classes, which are those of the published checkpoints, and the
``config.json`` files; the parameters are held against the published ones in
``tests/models/test_generic_macs.py``.
"""

from functools import partial

from tgate_batch.models.architecture import CLIP_L, Architecture, ComponentSpec
from tgate_batch.models.family import Entry
from tgate_batch.models.generic.tiny import build

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
_CLIP_L_PROJECTED = ComponentSpec("transformers", "CLIPTextModelWithProjection", CLIP_L.config)
_CLIP_G = ComponentSpec(
    "transformers",
    "CLIPTextModelWithProjection",
    {
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "max_position_embeddings": 77,
        "projection_dim": 1280,
    },
)
_VAE_16 = ComponentSpec(
    "diffusers",
    "AutoencoderKL",
    {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5305,
    },
)
_FLUX = Architecture(
    ComponentSpec("diffusers", "FluxTransformer2DModel", {"guidance_embeds": True}),
    encoders={"text_encoder": CLIP_L, "text_encoder_2": _T5_XXL},
    vae=_VAE_16,
    tokens=512,
)
_SD3 = Architecture(
    ComponentSpec(
        "diffusers",
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "out_channels": 16,
            "pos_embed_max_size": 192,
        },
    ),
    encoders={
        "text_encoder": _CLIP_L_PROJECTED,
        "text_encoder_2": _CLIP_G,
        "text_encoder_3": _T5_XXL,
    },
    vae=_VAE_16,
    tokens=77 + 256,
)
_QWEN_2_5_VL = ComponentSpec(
    "transformers",
    "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default"},
        },
        "vision_config": {"out_hidden_size": 3584},
    },
)
_QWEN = Architecture(
    ComponentSpec("diffusers", "QwenImageTransformer2DModel", {}),
    encoders={"text_encoder": _QWEN_2_5_VL},
    vae=ComponentSpec("diffusers", "AutoencoderKLQwenImage", {}),
    tokens=512,
)
_Z_IMAGE = Architecture(
    ComponentSpec("diffusers", "ZImageTransformer2DModel", {}),
    encoders={
        "text_encoder": ComponentSpec(
            "transformers",
            "Qwen3Model",
            {
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
            },
        )
    },
    vae=_VAE_16,
    tokens=512,
)


def _row(
    name: str,
    pipeline: str,
    checkpoint: str,
    steps: int,
    guidance_scale: float,
    side: int = 1024,
    *,
    license: str | None = None,
    half: str = "bfloat16",
    architecture: Architecture | None = None,
    distilled: bool = False,
) -> Entry:
    return Entry(
        name,
        pipeline,
        checkpoint,
        steps=steps,
        guidance_scale=guidance_scale,
        height=side,
        width=side,
        tiny=partial(build, pipeline),
        license=license,
        half=half,
        architecture=architecture,
        distilled=distilled,
    )


ENTRIES = (
    # Page stable_diffusion/stable_diffusion_3.md: 28 steps, 7.0, 1024, float16.
    _row(
        "sd3_medium",
        "StableDiffusion3Pipeline",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        28,
        7.0,
        license="stabilityai-ai-community",
        half="float16",
        architecture=_SD3,
    ),
    # Card (its copy frankjoshua/stable-diffusion-3.5-large): 28 steps, 3.5, bfloat16.
    _row(
        "sd35_large",
        "StableDiffusion3Pipeline",
        "stabilityai/stable-diffusion-3.5-large",
        28,
        3.5,
        license="stabilityai-ai-community",
    ),
    # Page flux.md: 50 steps, 3.5 (an input of the denoiser), bfloat16.
    _row(
        "flux1_dev",
        "FluxPipeline",
        "black-forest-labs/FLUX.1-dev",
        50,
        3.5,
        license="flux-1-dev-non-commercial-license",
        architecture=_FLUX,
    ),
    # Page flux.md: 4 steps, 0, bfloat16.
    _row(
        "flux1_schnell",
        "FluxPipeline",
        "black-forest-labs/FLUX.1-schnell",
        4,
        0.0,
        license="apache-2.0",
        distilled=True,
    ),
    # Example of pipeline_flux2_klein.py: 50 steps, 4.0, bfloat16.
    _row(
        "flux2_klein",
        "Flux2KleinPipeline",
        "black-forest-labs/FLUX.2-klein-base-9B",
        50,
        4.0,
    ),
    # Example and call of pipeline_qwenimage.py: 50 steps, true CFG 4.0, bfloat16.
    _row(
        "qwen_image",
        "QwenImagePipeline",
        "Qwen/Qwen-Image",
        50,
        4.0,
        license="apache-2.0",
        architecture=_QWEN,
    ),
    # Example of pipeline_z_image.py: 8 steps, 0, bfloat16; page z_image.md has the checkpoint.
    _row(
        "z_image_turbo",
        "ZImagePipeline",
        "Tongyi-MAI/Z-Image-Turbo",
        8,
        0.0,
        license="apache-2.0",
        architecture=_Z_IMAGE,
        distilled=True,
    ),
    # Page chroma.md: 40 steps, 3.0, bfloat16.
    _row("chroma", "ChromaPipeline", "lodestones/Chroma1-HD", 40, 3.0, license="apache-2.0"),
    # Example and call of pipeline_lumina2.py: 30 steps, 4.0, bfloat16.
    _row(
        "lumina2",
        "Lumina2Pipeline",
        "Alpha-VLLM/Lumina-Image-2.0",
        30,
        4.0,
        license="apache-2.0",
    ),
    # Example and call of pipeline_cogview4.py: 50 steps, 5.0, bfloat16.
    _row("cogview4", "CogView4Pipeline", "THUDM/CogView4-6B", 50, 5.0, license="apache-2.0"),
    # Example and call of pipeline_aura_flow.py: 50 steps, 3.5, float16.
    _row(
        "auraflow",
        "AuraFlowPipeline",
        "fal/AuraFlow",
        50,
        3.5,
        license="apache-2.0",
        half="float16",
    ),
    # Example and call of pipeline_hunyuandit.py: 50 steps, 5.0, float16.
    _row(
        "hunyuandit",
        "HunyuanDiTPipeline",
        "Tencent-Hunyuan/HunyuanDiT-Diffusers",
        50,
        5.0,
        half="float16",
    ),
    # Page hunyuanimage21.md: 50 steps, 2048, bfloat16; guidance 3.5 is its guider's, no argument.
    _row(
        "hunyuan_image",
        "HunyuanImagePipeline",
        "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
        50,
        3.5,
        2048,
    ),
)
