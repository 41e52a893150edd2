import numpy as np
import pytest
from PIL import Image

from tgate_batch.metrics.broken_images import why_broken


def test_a_picture_with_two_colours_is_whole():
    image = Image.new("RGB", (4, 4))
    image.putpixel((0, 0), (1, 0, 0))
    assert why_broken(image) is None


def test_a_black_picture_is_broken():
    assert why_broken(Image.new("RGB", (4, 4))) == "all black"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_constant_picture_is_broken_in_any_mode(mode):
    assert why_broken(Image.new(mode, (4, 4), "white")) == "one colour"


def test_grey_steps_along_an_axis_are_no_constant():
    assert why_broken(np.arange(16, dtype=np.uint8).reshape(4, 4)) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_breaks_a_picture(value):
    pixels = np.random.default_rng(0).random((4, 4, 3))
    pixels[1, 2, 0] = value
    assert why_broken(pixels) == "not finite"


def test_a_picture_without_pixels_is_broken():
    assert why_broken(np.zeros((0, 4, 3))) == "empty"
