import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from tgate_batch.errors import UserError
from tgate_batch.metrics.lpips import METRIC, Lpips


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file of AlexNet's convolutions with the weights of seed 0."""
    file = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.manual_seed(0)
    torch.save(
        {f"features.{key}": value for key, value in alexnet().features.state_dict().items()}, file
    )
    return file


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_distance_is_torchmetrics_on_the_same_backbone(backbone):
    torch.manual_seed(0)
    reference = _LPIPS(net="alex", pnet_rand=True)
    a, b = (
        torch.from_numpy(np.array(picture(n))).permute(2, 0, 1)[None].float() / 255 for n in (1, 2)
    )
    with torch.no_grad():
        expected = float(reference(a, b, normalize=True))
    (found,) = Lpips(backbone)([picture(1)], ["a"], [picture(2)])
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > 0


def test_equal_pictures_are_at_no_distance(backbone):
    assert Lpips(backbone)([picture(1)], ["a"], [picture(1)])[0] == 0


def test_weights_of_another_network_say_so_in_one_line(tmp_path):
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="is not torchvision's AlexNet") as caught:
        Lpips(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_missing_weights_say_so(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Lpips(tmp_path / "w.pth")


def test_its_identity_is_that_of_its_weights_file(backbone):
    assert METRIC.fingerprint(str(backbone)) == hashlib.sha256(backbone.read_bytes()).hexdigest()
