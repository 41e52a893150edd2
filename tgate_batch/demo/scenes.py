"""Scenes of the embedded model: captions, their true images, and the recognition of images.

A caption has the position of each object before the object, because CLIP's text encoder is causal:

    at the top a large red circle on a white background
    on the left a small blue cross and on the right a large red square on a pink background
"""

from __future__ import annotations

import random
import re
import zlib
from functools import lru_cache
from itertools import islice, permutations, repeat
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64
"""Width and height of an image, in pixels."""

BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (20, 20, 24),
    "grey": (128, 128, 128),
    "pink": (255, 170, 200),
    "cyan": (110, 220, 235),
    "brown": (105, 65, 35),
}
COLOURS = {
    "red": (220, 30, 40),
    "green": (25, 150, 60),
    "blue": (35, 70, 225),
    "yellow": (250, 220, 40),
    "purple": (140, 50, 185),
    "orange": (250, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"large": 25.0, "small": 14.0}
"""Side of the box around an object, in pixels."""

PLACES = {
    "left": ("on", (16, 32)),
    "right": ("on", (48, 32)),
    "top": ("at", (32, 16)),
    "bottom": ("at", (32, 48)),
    "middle": ("in", (32, 32)),
}
"""Position -> its preposition and its centre (x, y), in pixels."""

PAIRS = (("left", "right"), ("top", "bottom"))
"""Positions of two objects of one image, in the order of the caption."""

ASPECTS = ("background", "count", "colours", "shapes", "sizes", "places", "all")
"""The aspects that `check` compares."""

_SHIFT, _STRETCH, _OVERSAMPLE = 1.5, 0.05, 4
_SMALLEST_OBJECT = 16  # pixels
_SAME_COLOUR = 60.0  # distance in RGB
_SAME_SHAPE = 0.7  # intersection over union


class Thing(NamedTuple):
    """One object of an image."""

    place: str
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        preposition = PLACES[self.place][0]
        return f"{preposition} the {self.place} a {self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """The content of a caption: one thing, or two of different colours at one of `PAIRS`."""

    background: str
    things: tuple[Thing, ...]

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.things))} on a {self.background} background"


_THING = re.compile(
    rf"(?:on|at|in) the ({'|'.join(PLACES)}) a ({'|'.join(SIZES)}) "
    rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
)
_SCENE = re.compile(
    rf"({_THING.pattern}(?: and {_THING.pattern})?) on a ({'|'.join(BACKGROUNDS)}) background"
)


def parse(caption: str) -> Scene | None:
    """Returns the scene of a caption; None if it is outside the grammar."""
    caption = " ".join(caption.lower().split())
    match = _SCENE.fullmatch(caption)
    if match is None or match.lastindex is None:
        return None
    things = tuple(Thing(*words) for words in _THING.findall(match[1]))
    scene = Scene(match[match.lastindex], things)
    if len(things) == 2:
        a, b = things
        if a.colour == b.colour or (a.place, b.place) not in PAIRS:
            return None
    return scene if str(scene) == caption else None


def sample(rng: random.Random) -> Scene:
    """Returns a random scene: with one thing in 30% of cases, else with two."""
    background = rng.choice(list(BACKGROUNDS))
    places: tuple[str, ...]
    if rng.random() < 0.3:
        places, colours = (rng.choice(list(PLACES)),), rng.sample(list(COLOURS), 1)
    else:
        places, colours = rng.choice(PAIRS), rng.sample(list(COLOURS), 2)
    return Scene(
        background,
        tuple(
            Thing(place, rng.choice(list(SIZES)), colour, rng.choice(SHAPES))
            for place, colour in zip(places, colours, strict=True)
        ),
    )


def is_held_out(scene: Scene) -> bool:
    """True if the scene's combination is excluded from training: about one in five.

    For two things it is the unordered pair of (colour, shape), at every position, size and
    background; for one thing its colour, shape, size and background, at every position.
    """
    if len(scene.things) == 2:
        key = sorted(f"{thing.colour} {thing.shape}" for thing in scene.things)
    else:
        (thing,) = scene.things
        key = [thing.colour, thing.shape, thing.size, scene.background]
    return zlib.crc32(" ".join(key).encode()) % 5 == 0


def random_scenes(count: int, seed: int, held_out: bool) -> list[Scene]:
    """Returns `count` random scenes, either all held out or none."""
    rng = random.Random(seed)
    scenes = (sample(rng) for _ in repeat(None))
    return list(islice((each for each in scenes if is_held_out(each) == held_out), count))


def draw(caption: str | Scene, seed: int) -> Image.Image:
    """Draws the true image of a caption, 64x64 RGB.

    Objects are shifted by up to 1.5 px and scaled by up to 5%, at random. Raises ValueError if the
    caption is outside the grammar.
    """
    scene = parse(caption) if isinstance(caption, str) else caption
    if scene is None:
        raise ValueError(
            f"{caption!r} is outside the demo's grammar, so it cannot be drawn. "
            f"Fix: write it like: {Scene('white', (Thing('top', 'large', 'red', 'circle'),))}"
        )
    rng = random.Random(seed)
    canvas = Image.new("RGB", (SIDE * _OVERSAMPLE,) * 2, BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        x, y = (c + rng.uniform(-_SHIFT, _SHIFT) for c in PLACES[thing.place][1])
        half = SIZES[thing.size] / 2 * rng.uniform(1 - _STRETCH, 1 + _STRETCH)
        box = tuple(_OVERSAMPLE * v for v in (x - half, y - half, x + half, y + half))
        _draw_shape(pen, thing.shape, box, COLOURS[thing.colour])
    return canvas.reduce(_OVERSAMPLE)


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, box: tuple, colour) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), (left + width / 2, top)], fill=colour)
    else:
        pen.rectangle((left + width / 3, top, right - width / 3, bottom), fill=colour)
        pen.rectangle((left, top + height / 3, right, bottom - height / 3), fill=colour)


def check(image: Image.Image, caption: str) -> dict[str, bool] | None:
    """Compares an image with its caption, aspect by aspect (`ASPECTS`); True if it matches.

    Recognised things are assigned to expected ones so that most attributes match. An aspect matches
    if it does for every thing, so an image with two swapped shapes has wrong shapes or wrong
    colours. Returns None if the caption is outside the grammar.
    """
    expected = parse(caption)
    if expected is None:
        return None
    background, things = read(image)
    matches = dict.fromkeys(ASPECTS, False)
    matches["background"] = background == expected.background
    matches["count"] = len(things) == len(expected.things)
    if matches["count"]:
        orders = np.array([list(order) for order in permutations(things)])  # [orders, things, 4]
        equal = orders == np.array(expected.things)
        best = equal[equal.sum(axis=(1, 2)).argmax()].all(axis=0).tolist()
        matches |= zip(("places", "sizes", "colours", "shapes"), best, strict=True)
    matches["all"] = all(matches[aspect] for aspect in ASPECTS[:-1])
    return matches


def read(image: Image.Image) -> tuple[str | None, list[Thing]]:
    """Recognises background and things of an image; an unknown colour or shape is ""."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), float)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(rim, axis=0)
    mask = np.linalg.norm(pixels - ground, axis=-1) > _SAME_COLOUR
    labels = _components(mask)
    things = [
        _read_thing(pixels, labels == label)
        for label, area in zip(*np.unique(labels[mask], return_counts=True), strict=True)
        if area >= _SMALLEST_OBJECT
    ]
    return _nearest(ground, BACKGROUNDS), things


def _read_thing(pixels: np.ndarray, mask: np.ndarray) -> Thing:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = int(bottom - top), int(right - left)
    centre = np.array([left + right, top + bottom]) / 2
    place = min(PLACES, key=lambda name: np.linalg.norm(centre - PLACES[name][1]))
    size = min(SIZES, key=lambda name: abs(SIZES[name] - max(height, width)))
    inner = mask & ~_spread(~mask)
    colour = np.median(pixels[inner if inner.sum() >= 8 else mask], axis=0)
    cut = mask[top:bottom, left:right]
    overlaps = {name: _overlap(cut, _template(name, width, height)) for name in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    if overlaps[shape] < _SAME_SHAPE or max(height, width) > 1.5 * min(height, width):
        shape = ""
    return Thing(place, size, _nearest(colour, COLOURS) or "", shape)


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    distance, name = min((np.linalg.norm(colour - rgb), name) for name, rgb in palette.items())
    return name if distance < _SAME_COLOUR else None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@lru_cache(maxsize=4096)
def _template(shape: str, width: int, height: int) -> np.ndarray:
    canvas = Image.new("L", (width * _OVERSAMPLE, height * _OVERSAMPLE))
    box = (0, 0, canvas.width - 1, canvas.height - 1)
    _draw_shape(ImageDraw.Draw(canvas), shape, box, 255)
    return np.asarray(canvas.reduce(_OVERSAMPLE)) > 100


def _spread(mask: np.ndarray) -> np.ndarray:
    """Grows a mask by one pixel along the rows and the columns."""
    wide = np.pad(mask, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def _components(mask: np.ndarray) -> np.ndarray:
    """Labels the 4-connected components of a mask by their largest pixel number."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        wide = np.pad(labels, 1)
        around = np.maximum.reduce(
            [labels, wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]]
        )
        grown = np.where(mask, around, 0)
        if (grown == labels).all():
            return labels
        labels = grown
