from itertools import product

import numpy as np
import pytest
from PIL import Image

from tgate_batch.demo import scenes
from tgate_batch.demo.scenes import Scene, Thing

CAPTION = "on the left a large red circle and on the right a small blue square on a grey background"


def test_caption_says_what_its_scene_holds():
    assert scenes.parse(CAPTION) == Scene(
        "grey",
        (Thing("left", "large", "red", "circle"), Thing("right", "small", "blue", "square")),
    )


def test_every_scene_comes_back_from_its_caption():
    for scene in scenes.random_scenes(500, seed=1, held_out=False):
        assert scenes.parse(str(scene)) == scene


@pytest.mark.parametrize(
    "caption",
    [
        "a man riding a wave on top of a surfboard",
        "",
        "on the left a large red circle",
        "at the left a large red circle on a white background",
        "on the right a large red circle and on the left a small blue cross on a pink background",
        "on the left a large red circle and on the right a small red cross on a pink background",
        "on the left a large red circle and at the top a small blue cross on a pink background",
    ],
)
def test_caption_outside_the_grammar_has_no_scene(caption):
    assert scenes.parse(caption) is None
    assert scenes.check(Image.new("RGB", (64, 64)), caption) is None
    with pytest.raises(ValueError, match="outside the demo's grammar"):
        scenes.draw(caption, seed=0)


def test_every_single_thing_is_read_as_it_was_drawn():
    single = product(scenes.PLACES, scenes.SIZES, scenes.COLOURS, scenes.SHAPES)
    for number, values in enumerate(single):
        background = list(scenes.BACKGROUNDS)[number % 6]
        scene = Scene(background, (Thing(*values),))
        assert scenes.read(scenes.draw(scene, number)) == (background, [Thing(*values)])


def test_drawn_pictures_are_read_right_99_times_in_100():
    sampled = scenes.random_scenes(400, seed=2, held_out=True)
    held = [scenes.check(scenes.draw(s, i), str(s))["all"] for i, s in enumerate(sampled)]
    assert np.mean(held) >= 0.99


def test_one_seed_is_one_picture_and_another_seed_is_another():
    first = scenes.draw(CAPTION, 1).tobytes()
    assert first == scenes.draw(scenes.parse(CAPTION), 1).tobytes()
    assert first != scenes.draw(CAPTION, 2).tobytes()


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        (CAPTION.replace("grey", "pink"), {"background"}),
        (CAPTION.replace("circle", "cross"), {"shapes"}),
        (CAPTION.replace("red", "green"), {"colours"}),
        (CAPTION.replace("small", "large"), {"sizes"}),
        (CAPTION.replace("left", "top").replace("right", "bottom").replace("on the", "at the"),
         {"places"}),
        ("on the left a small blue square and on the right a large red circle on a grey background",
         {"places"}),
        ("on the left a large red circle on a grey background",
         {"count", "colours", "shapes", "sizes", "places"}),
    ],
)  # fmt: skip
def test_checker_names_what_differs(drawn, wrong):
    held = scenes.check(scenes.draw(drawn, 3), CAPTION)
    assert {aspect for aspect, right in held.items() if not right} == wrong | {"all"}


def test_swapped_shapes_are_not_right():
    swapped = CAPTION.replace("circle", "x").replace("square", "circle").replace("x", "square")
    assert not scenes.check(scenes.draw(swapped, 3), CAPTION)["shapes"]


def test_picture_of_noise_shows_nothing_asked_for():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not scenes.check(Image.fromarray(noise), CAPTION)["all"]


def test_held_out_is_decided_by_the_pair_alone():
    for scene in scenes.random_scenes(300, seed=3, held_out=True):
        if len(scene.things) == 2:
            (a, b), other = scene.things, list(scenes.BACKGROUNDS)
            exchanged = (b._replace(place=a.place), a._replace(place=b.place))
            for background in other:
                assert scenes.is_held_out(Scene(background, exchanged))


def test_about_one_scene_in_five_is_held_out():
    singles = product(scenes.PLACES, scenes.SIZES, scenes.COLOURS, scenes.SHAPES)
    held = [
        scenes.is_held_out(Scene(background, (Thing(*values),)))
        for values in singles
        for background in scenes.BACKGROUNDS
    ]
    assert 0.15 < np.mean(held) < 0.25
