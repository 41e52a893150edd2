import numpy as np
import pytest
from PIL import Image

from tgate_batch.demo.accuracy import PromptAccuracy
from tgate_batch.demo.scenes import draw

RED = "at the top a large red circle on a white background"
BLUE = "at the top a large blue circle on a white background"


def test_a_drawn_caption_is_right_and_another_colour_is_wrong():
    assert list(PromptAccuracy()([draw(RED, 1), draw(BLUE, 2)], [RED, RED])) == [1.0, 0.0]


def test_an_aspect_is_read_alone():
    metric = PromptAccuracy("shapes")
    assert metric.name == "prompt_accuracy_shapes"
    assert list(metric([draw(BLUE, 2)], [RED])) == [1.0]


def test_a_caption_of_another_world_measures_nothing():
    assert np.isnan(PromptAccuracy()([Image.new("RGB", (64, 64))], ["a dog on the moon"])).all()


def test_an_unknown_aspect_is_refused():
    with pytest.raises(ValueError, match=r"colour.*one of"):
        PromptAccuracy("colour")
