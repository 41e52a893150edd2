import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from tgate_batch.errors import UserError
from tgate_batch.metrics.paired import Psnr, Ssim


def picture(seed, size=(40, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def test_psnr_of_a_picture_one_level_off_everywhere():
    grey, lighter = (Image.new("RGB", (8, 8), (level,) * 3) for level in (100, 101))
    assert Psnr()([grey], ["a"], [lighter])[0] == pytest.approx(20 * np.log10(255))


def test_black_against_white_is_0_db():
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    assert Psnr()([black], ["a"], [white])[0] == 0.0


def test_equal_pictures_have_100_db_and_similarity_1():
    assert Psnr()([picture(1)], ["a"], [picture(1)])[0] == 100.0
    assert Ssim()([picture(1)], ["a"], [picture(1)])[0] == pytest.approx(1.0)


def test_psnr_and_ssim_are_torchmetrics():
    images, baselines = [picture(1), picture(2)], [picture(3), picture(4)]
    psnr, ssim = (metric(images, ["", ""], baselines) for metric in (Psnr(), Ssim()))
    for n, (image, baseline) in enumerate(zip(images, baselines, strict=True)):
        pair = tensor(image), tensor(baseline)
        assert psnr[n] == pytest.approx(float(peak_signal_noise_ratio(*pair, data_range=1.0)), 1e-5)
        assert ssim[n] == pytest.approx(
            float(structural_similarity_index_measure(*pair, data_range=1.0)), 1e-5
        )


def test_images_of_mixed_sizes_are_compared_pair_by_pair():
    sizes = [(40, 32), (16, 24)]
    images = [picture(n, size) for n, size in enumerate(sizes)]
    assert np.isfinite(Ssim()(images, ["", ""], images[:])).all()


@pytest.mark.parametrize("metric", [Psnr(), Ssim()])
def test_a_pair_of_two_sizes_cannot_be_compared(metric):
    with pytest.raises(UserError, match=r"40x32.*16x24"):
        metric([picture(1)], ["a"], [picture(1, (16, 24))])


def test_a_missing_baseline_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="found 0"):
        Psnr()([picture(1)], ["a"])
