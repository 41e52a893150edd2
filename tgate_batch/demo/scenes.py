"""The small world of the embedded model: captions, the images they mean, and reading them back.

A caption puts the place of each object before the object, because CLIP's text encoder is causal:

    at the top a large red circle on a white background
    on the left a small blue cross and on the right a large red square on a pink background
"""

from __future__ import annotations

import random
import re
import zlib
from functools import lru_cache
from itertools import permutations
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
"""Place -> its preposition and its centre (x, y), in pixels."""

PAIRS = (("left", "right"), ("top", "bottom"))
"""Places that two objects of one image take, in the order in which a caption names them."""

ASPECTS = ("background", "count", "colours", "shapes", "sizes", "places", "all")
"""What `check` reads."""

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
    """What a caption says: one thing, or two of different colours at one of `PAIRS`."""

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
    """The scene of a caption, or None when the caption is outside the grammar."""
    caption = " ".join(caption.lower().split())
    match = _SCENE.fullmatch(caption)
    if match is None or match.lastindex is None:
        return None
    things = tuple(Thing(*found) for found in _THING.findall(match[1]))
    scene = Scene(match[match.lastindex], things)
    if len(things) == 2:
        a, b = things
        if a.colour == b.colour or (a.place, b.place) not in PAIRS:
            return None
    return scene if str(scene) == caption else None


def sample(rng: random.Random) -> Scene:
    """A random scene: one thing in three of ten, else two."""
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
    """Whether the scene's combination is kept from training: about one in five.

    Two things: the unordered pair of (colour, shape), at every place, size and background.
    One thing: its colour, shape, size and background together, at every place.
    """
    if len(scene.things) == 2:
        key = sorted(f"{thing.colour} {thing.shape}" for thing in scene.things)
    else:
        (thing,) = scene.things
        key = [thing.colour, thing.shape, thing.size, scene.background]
    return zlib.crc32(" ".join(key).encode()) % 5 == 0


def random_scenes(count: int, seed: int, held: bool) -> list[Scene]:
    """`count` random scenes, all held out or none."""
    rng = random.Random(seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = sample(rng)
        if is_held_out(scene) == held:
            found.append(scene)
    return found


def draw(caption: str | Scene, seed: int) -> Image.Image:
    """The real image of a caption, 64x64 RGB: objects moved by up to 1.5 px, scaled by up to 5%.

    Raises ValueError when the caption is outside the grammar.
    """
    scene = parse(caption) if isinstance(caption, str) else caption
    if scene is None:
        raise ValueError(
            f"{caption!r} is outside the demo's grammar, so no image of it can be drawn. "
            f"Write it like: {Scene('white', (Thing('top', 'large', 'red', 'circle'),))}"
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
    """Read an image back and compare it with its caption, aspect by aspect (`ASPECTS`).

    Found things are matched to asked ones so that most attributes agree; an attribute holds when
    it agrees for every thing, so an image with both shapes right but swapped has wrong shapes
    or wrong colours. None when the caption is outside the grammar.
    """
    asked = parse(caption)
    if asked is None:
        return None
    background, found = read(image)
    held = dict.fromkeys(ASPECTS, False)
    held["background"] = background == asked.background
    held["count"] = len(found) == len(asked.things)
    if held["count"]:
        best = max(
            ([_agreement(*pair) for pair in zip(order, asked.things, strict=True)]
             for order in permutations(found)),
            key=lambda agreement: sum(map(sum, agreement)),
        )  # fmt: skip
        for number, aspect in enumerate(("places", "sizes", "colours", "shapes")):
            held[aspect] = all(agreement[number] for agreement in best)
    held["all"] = all(held[aspect] for aspect in ASPECTS[:-1])
    return held


def _agreement(a: Thing, b: Thing) -> list[bool]:
    return [mine == other for mine, other in zip(a, b, strict=True)]


def read(image: Image.Image) -> tuple[str | None, list[Thing]]:
    """Background and things seen in an image; an unreadable colour or shape is ""."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), float)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(rim, axis=0)
    mask = np.linalg.norm(pixels - ground, axis=-1) > _SAME_COLOUR
    labels = _components(mask)
    things = []
    for label, area in zip(*np.unique(labels[mask], return_counts=True), strict=True):
        if area >= _SMALLEST_OBJECT:
            things.append(_read_thing(pixels, labels == label))
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
    """The mask grown by one pixel along the rows and the columns."""
    wide = np.pad(mask, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def _components(mask: np.ndarray) -> np.ndarray:
    """4-connected components of a mask: each pixel gets the largest pixel number it reaches."""
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
