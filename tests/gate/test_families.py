import torch

from tgate_batch.gate.families import kept_branch


def test_video_keeps_the_positive_branch_and_pictures_the_negative(tiny_models):
    assert kept_branch(tiny_models("svd").unet) == 1
    for name in ("sd15", "sdxl"):
        assert kept_branch(tiny_models(name).unet) == 0
    assert kept_branch(tiny_models("pixart_alpha").transformer) == 0


def test_the_denoisers_class_decides_and_not_the_pipelines(tiny_models):
    unet = tiny_models("svd").unet
    assert kept_branch(type("Finetuned", (type(unet),), {})(**unet.config)) == 1
    assert kept_branch(torch.compile(unet)) == 1
