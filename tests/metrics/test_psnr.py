import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

from tgate_batch.metrics.psnr import METRIC

psnr = METRIC.load(None, "cpu")


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_psnr_of_a_picture_one_level_off_everywhere():
    grey, lighter = (Image.new("RGB", (8, 8), (level,) * 3) for level in (100, 101))
    assert psnr([grey], ["a"], [lighter])[0] == pytest.approx(20 * np.log10(255))


def test_black_against_white_is_0_db():
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    assert psnr([black], ["a"], [white])[0] == 0.0


def test_equal_pictures_have_100_db():
    assert psnr([picture(1)], ["a"], [picture(1)])[0] == 100.0


def test_psnr_is_torchmetrics():
    images, baselines = [picture(1), picture(2)], [picture(3), picture(4)]
    for n, found in enumerate(psnr(images, ["", ""], baselines)):
        pair = (torch.from_numpy(np.array(side[n])) / 255 for side in (images, baselines))
        assert found == pytest.approx(float(peak_signal_noise_ratio(*pair, data_range=1.0)), 1e-5)


def test_no_pictures_have_no_figures():
    assert psnr([], [], []).shape == (0,)
