"""The snippets of T-GATE's documents, with only the import and the checkpoint changed."""

from functools import cache

import pytest
import tgate as reference
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from tgate_batch.gate import loaders
from tgate_batch.models.catalogue import save_tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: str(save_tiny(name, folder / name)))


@pytest.fixture(scope="module")
def sdxl(saved):
    return saved("sdxl")


def noise(height, width):
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))


def test_sdxl_snippet(sdxl):
    images = []
    for TgateSDXLLoader in (loaders.TgateSDXLLoader, reference.TgateSDXLLoader):
        pipe = StableDiffusionXLPipeline.from_pretrained(
            sdxl, dtype=torch.float32, use_safetensors=True
        )
        gate_step = 10
        sp_interval = 5
        fi_interval = 1
        warm_up = 2
        inference_step = 25
        pipe = TgateSDXLLoader(pipe).to("cpu")
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        image = pipe.tgate(
            "Astronaut in a jungle, cold color palette, muted colors, detailed, 8k.",
            gate_step=gate_step,
            sp_interval=sp_interval,
            fi_interval=fi_interval,
            warm_up=warm_up,
            num_inference_steps=inference_step,
            latents=noise(8, 8),
        ).images[0]
        images.append(image)
    assert images[0].size == (64, 64)
    assert images[0].tobytes() == images[1].tobytes()


def test_sdxl_deepcache_snippet(sdxl):
    images = []
    for module in (loaders, reference):
        pipe = StableDiffusionXLPipeline.from_pretrained(sdxl, use_safetensors=True)
        pipe = module.TgateSDXLDeepCacheLoader(pipe, cache_interval=3, cache_branch_id=0).to("cpu")
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        image = pipe.tgate(
            "Astronaut in a jungle, cold color palette, muted colors, detailed, 8k.",
            gate_step=10,
            sp_interval=1,
            fi_interval=1,
            warm_up=0,
            num_inference_steps=25,
            latents=noise(8, 8),
        ).images[0]
        images.append(image)
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.parametrize(
    ("name", "pipeline", "loader", "prompt"),
    [
        (
            "pixart_alpha",
            PixArtAlphaPipeline,
            "TgatePixArtAlphaLoader",
            "An alpaca made of colorful building blocks, cyberpunk.",
        ),
        (
            "pixart_sigma",
            PixArtSigmaPipeline,
            "TgatePixArtSigmaLoader",
            "an astronaut sitting in a diner, eating fries, cinematic, analog film.",
        ),
    ],
)
def test_pixart_snippets(saved, name, pipeline, loader, prompt):
    images = []
    for module in (loaders, reference):
        pipe = pipeline.from_pretrained(saved(name), dtype=torch.float32)
        pipe = getattr(module, loader)(pipe).to("cpu")
        image = pipe.tgate(
            prompt,
            gate_step=15,
            sp_interval=3,
            fi_interval=1,
            warm_up=2,
            num_inference_steps=25,
            latents=noise(32, 32),
        ).images[0]
        images.append(image)
    assert images[0].size == (256, 256)
    assert images[0].tobytes() == images[1].tobytes()


def test_lcm_snippet(saved, sdxl):
    """As documented, with `lcm=True` at the loader, where the reference 1.0.0 fails."""
    unet = UNet2DConditionModel.from_pretrained(saved("lcm_sdxl"), subfolder="unet")
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl, unet=unet)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    call = {"num_inference_steps": 4, "latents": noise(8, 8)}
    settings = {"gate_step": 1, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}
    prompt = "Astronaut in a jungle, cold color palette, muted colors, detailed, 8k."

    def draw(pipe, **more):
        generator = torch.Generator().manual_seed(0)
        return pipe.tgate(prompt, **settings, **call, generator=generator, **more).images[0]

    ours = draw(loaders.TgateSDXLLoader(pipe, lcm=True).to("cpu"))
    theirs = draw(reference.TgateSDXLLoader(pipe), lcm=True)
    assert ours.tobytes() == theirs.tobytes()


def test_video_snippet(saved):
    """The reference's main.py, with fewer and smaller frames and no noise on the picture."""
    videos = []
    for module in (loaders, reference):
        pipe = StableVideoDiffusionPipeline.from_pretrained(saved("svd"))
        pipe = module.TgateSVDLoader(pipe).to("cpu")
        frames = pipe.tgate(
            Image.new("RGB", (64, 64), "teal"),
            gate_step=4,
            num_inference_steps=6,
            warm_up=1,
            sp_interval=2,
            fi_interval=1,
            num_frames=2,
            decode_chunk_size=8,
            height=64,
            width=64,
            noise_aug_strength=0.0,  # the two draw it from the generator differently often
            latents=torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        ).frames[0]
        videos.append([frame.tobytes() for frame in frames])
    assert len(videos[0]) == 2
    assert videos[0] == videos[1]


# Diffusers' documents still show the first version: `gate_step` at the loader too, and
# cross-attention alone gated, which is sp_interval=fi_interval=1 and warm_up=0 of the second.
@pytest.mark.parametrize(
    ("name", "pipeline", "loader", "successor", "gate_step", "steps", "lcm"),
    [
        ("pixart_alpha", PixArtAlphaPipeline, "PixArt", "PixArtAlpha", 8, 25, {}),
        pytest.param(
            "sdxl", StableDiffusionXLPipeline, "SDXL", "SDXL", 10, 25, {}, marks=pytest.mark.slow
        ),
        ("lcm_sdxl", StableDiffusionXLPipeline, "SDXL", "SDXL", 1, 4, {"lcm": True}),
    ],
)
def test_snippets_of_version_0_1(saved, name, pipeline, loader, successor, gate_step, steps, lcm):
    def draw(pipe, **more):
        size = 32 if name == "pixart_alpha" else 8
        return pipe.tgate(
            "An alpaca made of colorful building blocks, cyberpunk.",
            gate_step=gate_step,
            num_inference_steps=steps,
            latents=noise(size, size),
            generator=torch.Generator().manual_seed(0),
            **more,
        ).images[0]

    pipe = pipeline.from_pretrained(saved(name))
    pipe = getattr(loaders, f"Tgate{loader}Loader")(
        pipe,
        gate_step=gate_step,
        num_inference_steps=steps,
        **lcm,
    ).to("cpu")
    theirs = getattr(reference, f"Tgate{successor}Loader")(pipeline.from_pretrained(saved(name)))
    expected = draw(theirs, sp_interval=1, fi_interval=1, warm_up=0, **lcm)
    assert draw(pipe).tobytes() == expected.tobytes()


def test_gate_step_at_the_loader_alone_is_enough(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    first = loaders.TgateSDLoader(pipe, gate_step=3, num_inference_steps=6).tgate(**call)[0]
    settings = {"gate_step": 3, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}
    second = loaders.TgateSDLoader(pipe).tgate(**call, **settings)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, loaders.TgateSDLoader(pipe).tgate(**call)[0])


def test_settings_at_the_loader_are_the_calls_defaults(tiny_models, arguments):
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe)
    at_loader = loaders.TgateSDLoader(pipe, gate_step=3, sp_interval=2).tgate(**call)[0]
    settings = {"gate_step": 3, "sp_interval": 2, "fi_interval": 1, "warm_up": 0}
    assert torch.equal(at_loader, loaders.TgateSDLoader(pipe).tgate(**call, **settings)[0])


@pytest.mark.parametrize("name", ["TgateSDXLLoader", "TgatePixArtLoader", "TgateSDDeepCacheLoader"])
def test_a_loader_refuses_what_it_does_not_know(tiny_models, name):
    with pytest.raises(TypeError, match="gatestep"):
        getattr(loaders, name)(tiny_models("sdxl"), gatestep=3)


def test_a_plain_call_after_a_loaders_call_is_plain(tiny_models, arguments):
    pipe = tiny_models("pixart_alpha", fresh=True)
    call = arguments(pipe)
    before = pipe(**call)[0]
    loaders.TgatePixArtLoader(pipe).tgate(**call, gate_step=2)
    assert torch.equal(before, pipe(**call)[0])


def test_guidance_off_at_the_loaders_call(tiny_models, arguments):
    pipe = loaders.TgateSDLoader(tiny_models("sd15", fresh=True, scheduler="ddim"))
    call = arguments(pipe, 2, guidance_scale=1.0)
    assert pipe.tgate(**call, gate_step=3).images.isfinite().all()


def test_every_name_of_the_reference_is_here():
    names = [name for name in vars(reference) if name.endswith("Loader")]
    assert len(names) >= 7
    assert [name for name in names if not hasattr(loaders, name)] == []
