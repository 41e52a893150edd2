import numpy as np
import pytest
import torch
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.metrics.pairs import pairs, tensor


def test_a_pair_of_two_sizes_cannot_be_compared():
    with pytest.raises(UserError, match=r"40x32.*16x24"):
        pairs([Image.new("RGB", (40, 32))], [Image.new("RGB", (16, 24))])


@pytest.mark.parametrize("baselines", [None, []])
def test_a_missing_baseline_is_a_fault_of_the_caller(baselines):
    with pytest.raises(ValueError, match="got 0"):
        pairs([Image.new("RGB", (8, 8))], baselines)


def test_white_is_one_in_every_channel():
    ((white, black),) = pairs([Image.new("L", (3, 2), 255)], [Image.new("RGB", (3, 2))])
    assert white.shape == black.shape == (2, 3, 3)
    assert torch.equal(tensor(white), torch.ones(1, 3, 2, 3))
    assert not np.any(black)
