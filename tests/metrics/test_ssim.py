import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from tgate_batch.metrics.ssim import METRIC

ssim = METRIC.load(None, "cpu")


def picture(seed, size=(40, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def test_equal_pictures_have_similarity_1():
    assert ssim([picture(1)], ["a"], [picture(1)])[0] == pytest.approx(1.0)


def test_ssim_is_torchmetrics():
    images, baselines = [picture(1), picture(2)], [picture(3), picture(4)]
    for n, found in enumerate(ssim(images, ["", ""], baselines)):
        pair = tensor(images[n]), tensor(baselines[n])
        expected = float(structural_similarity_index_measure(*pair, data_range=1.0))
        assert found == pytest.approx(expected, 1e-5)


def test_images_of_mixed_sizes_are_compared_pair_by_pair():
    images = [picture(0, (40, 32)), picture(1, (16, 24))]
    assert np.isfinite(ssim(images, ["", ""], images[:])).all()
