"""What the gate knows of a denoiser's class."""

import pytest
import torch

from tgate_batch.gate import GatePlan, gated
from tgate_batch.gate.supported_denoisers import DENOISERS, denoiser_traits, documented_plan


def test_video_keeps_the_positive_branch_and_pictures_the_negative(tiny_models):
    assert denoiser_traits(tiny_models("svd").unet).kept_branch == 1
    for name in ("sd15", "sdxl"):
        assert denoiser_traits(tiny_models(name).unet).kept_branch == 0
    assert denoiser_traits(tiny_models("pixart_alpha").transformer).kept_branch == 0


def test_the_denoisers_class_decides_and_not_the_pipelines(tiny_models):
    unet = tiny_models("svd").unet
    assert denoiser_traits(type("Finetuned", (type(unet),), {})(**unet.config)).kept_branch == 1
    assert denoiser_traits(torch.compile(unet)).kept_branch == 1


@pytest.mark.parametrize("name", DENOISERS)
def test_every_listed_class_is_one_of_diffusers(name):
    import diffusers

    assert isinstance(getattr(diffusers, name), type)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("sd15", GatePlan(10, 5, 1, 2)),
        ("sdxl", GatePlan(10, 5, 1, 2)),
        ("pixart_alpha", GatePlan(15, 3, 1, 2)),
        ("pixart_sigma", GatePlan(15, 3, 1, 2)),
        ("lcm_sdxl", GatePlan(1)),
        ("lcm_pixart_alpha", GatePlan(1)),
        ("svd", GatePlan(10)),
    ],
)
def test_documented_plans(tiny_models, name, plan):
    pipe = tiny_models(name)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    assert documented_plan(pipe, denoiser) == plan


def test_without_a_plan_the_documented_one_is_followed(tiny_models, arguments):
    pipe = tiny_models("pixart_alpha", scheduler="ddim")
    call = arguments(pipe, steps=17)
    with gated(pipe):
        latents = pipe(**call)[0]
    with gated(pipe, GatePlan(15, 3, 1, 2)):
        assert torch.equal(pipe(**call)[0], latents)
