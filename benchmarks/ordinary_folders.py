"""Image folders like those of a new user, made from the bundled drawings or drawn by seed.

Each data set is a function that yields pictures of the training and test parts, which are written as PNG files into
`train/CLASS/` and `test/CLASS/`. Class names help with some of them (`emoji`, `kinds`) and not with others (`heaps`,
`tilts`).
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from adapt.data import Item, open_image
from benchmarks.drawings import SEEN, drawings

SIDE = 64  # pixels
TRAIN, TEST = 40, 400  # training images of each class, and test images in total
Labelled = tuple[str, str, Image.Image]  # part, class, picture
_SKEWED = (  # the groups with the most concepts first
    "sky and weather", "animal mammal", "transport ground", "clothing", "food prepared", "sport", "place building",
    "tool", "person role", "office", "household", "food fruit",
)  # fmt: skip
_KINDS = {
    **dict.fromkeys(("animal mammal", "animal bird", "animal marine", "animal bug"), "animal"),
    **dict.fromkeys(("plant flower", "plant"), "plant"),
    **dict.fromkeys(("food fruit", "food vegetable", "food prepared", "food asian", "food sweet"), "food"),
    **dict.fromkeys(("transport ground", "transport air"), "vehicle"),
    "clothing": "clothing", "sport": "sport", "musical instrument": "musical instrument",
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """Write the data set `name` under `folder`, unless it is there, and return its own folder."""
    root = folder / name
    if not (root / "complete").is_file():
        for number, (part, label, picture) in enumerate(SETS[name]()):
            path = root / part / label / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        (root / "complete").touch()
    return root


def _emoji() -> Iterator[Labelled]:
    """Draw groups of concepts, one drawing of each concept in training; the test drawings show other concepts."""
    for part, items in _parts().items():
        yield from ((part, item.answer, open_image(item)) for item in items)


def _skewed() -> Iterator[Labelled]:
    """Draw twelve of the groups, with eighteen training images down to two."""
    sizes = dict(zip(_SKEWED, (18, 16, 14, 12, 10, 9, 8, 7, 5, 4, 3, 2)))
    seen: dict[str, int] = dict.fromkeys(sizes, 0)
    for part, label, picture in _emoji():
        if label in sizes and (part == "test" or seen[label] < sizes[label]):
            seen[label] += part == "train"
            yield part, label, picture


def _kinds() -> Iterator[Labelled]:
    """Draw seven kinds of things with plain names."""
    yield from ((part, _KINDS[group], picture) for part, group, picture in _emoji() if group in _KINDS)


def _sketches() -> Iterator[Labelled]:
    """Draw the same as grey outlines."""
    stream = random.Random(5)
    for part, kind, picture in _kinds():
        outline = picture.convert("L").filter(ImageFilter.CONTOUR)
        yield part, kind, outline.filter(ImageFilter.GaussianBlur(stream.uniform(0, 1))).convert("RGB")


def _heaps() -> Iterator[Labelled]:
    """Draw one to five small drawings of one thing, labelled by their number."""
    names = ("one", "two", "three", "four", "five")

    def draw(name: str, stream: random.Random) -> Image.Image:
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        thing = open_image(stream.choice(drawings(SEEN).train)).resize((20, 20))
        for place in stream.sample(range(9), names.index(name) + 1):
            picture.paste(thing, (2 + 21 * (place % 3) + stream.randint(-1, 1), 2 + 21 * (place // 3)))
        return picture

    return _drawn(names, draw, 6)


def _letters() -> Iterator[Labelled]:
    """Draw ten letters, rotated, of any size and colour, on noise."""
    from PIL import ImageFont

    def draw(name: str, stream: random.Random) -> Image.Image:
        layer, size = Image.new("L", (SIDE, SIDE)), stream.uniform(24, 48)
        pen = ImageDraw.Draw(layer)
        pen.text((SIDE / 2, SIDE / 2), name[-1], 255, ImageFont.load_default(size), anchor="mm")
        layer = layer.rotate(stream.uniform(-30, 30), Image.Resampling.BICUBIC)
        picture = _noise(stream)
        picture.paste(_colour(stream), mask=layer)
        return picture

    return _drawn(tuple(f"letter {each}" for each in "ABEFHKMPRX"), draw, 7)


def _digits() -> Iterator[Labelled]:
    """Take scikit-learn's handwritten digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    order = np.random.default_rng(0).permutation(len(bundle.target))
    number = dict.fromkeys(range(10), 0)
    for place in order.tolist():
        label = int(bundle.target[place])
        number[label] += 1
        part = "train" if number[label] <= TRAIN else "test"
        if number[label] <= TRAIN + TEST // 10:
            grey = Image.fromarray((255 - bundle.images[place] * 255 / 16).astype(np.uint8))
            yield part, names[label], grey.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _shapes() -> Iterator[Labelled]:
    """Draw eight plain shapes of any colour, size and position, on noise."""
    corners = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}

    def draw(name: str, stream: random.Random) -> Image.Image:
        picture = _noise(stream)
        pen, radius = ImageDraw.Draw(picture), stream.uniform(10, 22)
        x, y = (stream.uniform(radius + 2, SIDE - radius - 2) for _ in range(2))
        colour = _colour(stream)
        if name in corners:
            pen.polygon(_polygon(x, y, radius, corners[name], stream.uniform(0, 360)), colour)
        elif name == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        elif name == "ring":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=5)
        elif name == "star":
            outer, inner = (_polygon(x, y, r, 5, turn) for r, turn in ((radius, 0), (radius / 2.4, 36)))
            pen.polygon([point for both in zip(outer, inner) for point in both], colour)
        else:
            arm = radius / 3
            pen.rectangle((x - radius, y - arm, x + radius, y + arm), colour)
            pen.rectangle((x - arm, y - radius, x + arm, y + radius), colour)
        return picture

    return _drawn((*corners, "circle", "ring", "star", "cross"), draw, 2)


def _textures() -> Iterator[Labelled]:
    """Draw ten textures in any two colours."""
    u, v = np.meshgrid(np.arange(SIDE), np.arange(SIDE))

    def draw(name: str, stream: random.Random) -> Image.Image:
        size, phase, x, y = stream.uniform(5, 12), stream.uniform(0, 9), u + stream.uniform(0, 9), v.astype(float)
        grain = np.random.default_rng(stream.getrandbits(32)).random((SIDE, SIDE))
        smooth = np.asarray(Image.fromarray((grain * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 4)))
        fields = {
            "striped": np.sin(6.28 * (x * math.cos(phase) + y * math.sin(phase)) / size),
            "chequered": np.sin(6.28 * x / size) * np.sin(6.28 * y / size),
            "dotted": 0.3 - np.hypot((x + phase) % size - size / 2, y % size - size / 2) / size,
            "grainy": grain - 0.5,
            "cloudy": smooth.astype(float) - smooth.mean(),
            "wavy": np.sin(6.28 * (y + size / 2 * np.sin(6.28 * x / 20 + phase)) / size),
            "ringed": np.sin(6.28 * np.hypot(x - 30, y - 30) / size),
            "bricked": np.minimum((y % size) - 1, ((x + size * ((y // size) % 2)) % (2 * size)) - 1),
            "woven": np.where(((x // size) + (y // size)) % 2 == 0, np.sin(x * 3), np.sin(y * 3)),
            "zigzagged": np.sin(6.28 * (y + np.abs((x + phase) % (2 * size) - size)) / size),
        }
        mask = (fields[name] > 0)[..., None]
        colours = [np.array(_colour(stream)) for _ in range(2)]
        mixed = np.where(mask, *colours) + (grain[..., None] - 0.5) * stream.uniform(0, 90)
        return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))

    names = ("striped", "chequered", "dotted", "grainy", "cloudy", "wavy", "ringed", "bricked", "woven", "zigzagged")
    return _drawn(names, draw, 3)


def _tilts() -> Iterator[Labelled]:
    """Draw nine classes that are nearly alike: a bar on noise, tilted by 0, 6, … 48 degrees."""

    def draw(name: str, stream: random.Random) -> Image.Image:
        angle = math.radians(int(name.split()[-1]) + stream.uniform(-2, 2))
        picture, (x, y) = _noise(stream), (SIDE / 2 + stream.uniform(-4, 4), SIDE / 2 + stream.uniform(-4, 4))
        reach = stream.uniform(18, 26)
        ends = [(x + side * reach * math.cos(angle), y + side * reach * math.sin(angle)) for side in (-1, 1)]
        ImageDraw.Draw(picture).line(ends, _colour(stream), stream.randint(4, 8))
        return picture

    return _drawn(tuple(f"bar at {angle}" for angle in range(0, 54, 6)), draw, 4)


SETS: dict[str, Callable[[], Iterator[Labelled]]] = {
    "emoji": _emoji, "kinds": _kinds, "skewed": _skewed, "sketches": _sketches, "heaps": _heaps, "digits": _digits,
    "letters": _letters, "shapes": _shapes, "textures": _textures, "tilts": _tilts,
}  # fmt: skip


@cache
def _parts() -> dict[str, list[Item]]:
    """Return the training images of the groups, one drawing of each concept, and all of the test images."""
    split = drawings(SEEN)
    by_concept: dict[str, list[Item]] = {}
    for item in split.train + split.val:
        by_concept.setdefault(item.group, []).append(item)
    one_each = [random.Random(concept).choice(own) for concept, own in by_concept.items()]
    return {"train": one_each, "test": list(split.test)}


def _drawn(names: tuple[str, ...], draw: Callable[[str, random.Random], Image.Image], seed: int) -> Iterator[Labelled]:
    stream = random.Random(seed)
    for part, count in (("train", TRAIN), ("test", TEST // len(names))):
        yield from ((part, name, draw(name, stream)) for name in names for _ in range(count))


def _noise(stream: random.Random) -> Image.Image:
    grain = np.random.default_rng(stream.getrandbits(32)).normal(0, stream.uniform(4, 40), (SIDE, SIDE, 3))
    return Image.fromarray((np.array(_colour(stream)) + grain).clip(0, 255).astype(np.uint8))


def _colour(stream: random.Random) -> tuple[int, ...]:
    return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(stream.random(), stream.random(), stream.random()))


def _polygon(x: float, y: float, radius: float, corners: int, turn: float) -> list[tuple[float, float]]:
    angles = [math.radians(turn + 360 * corner / corners) for corner in range(corners)]
    return [(x + radius * math.sin(angle), y - radius * math.cos(angle)) for angle in angles]
