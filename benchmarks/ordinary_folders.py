"""Data sets as a new user brings them, drawn by seed: folders of photographs are imitated by what the project bundles.

Each is a function of a seed that gives a `Drawn`: pictures of training classes and of test images, which are written as
PNG files into `train/CLASS/` and `test/CLASS/`. Words help with some of them (`emoji`, `kinds`), and say nothing of
others (`heaps`, `tilts`).
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

import adapt
from adapt.data import Item, open_image

SIDE = 64  # pixels of a drawn picture
TRAIN, TEST = 40, 400  # training images of a class, and test images in all
Labelled = tuple[str, str, Image.Image]  # part, class, picture
_SKEWED = (  # the groups with most concepts come first
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
    """Groups of concepts, one drawing of each concept in training; the test drawings are of other concepts."""
    for part, items in _parts().items():
        yield from ((part, item.answer, open_image(item)) for item in items)


def _skewed() -> Iterator[Labelled]:
    """Twelve of the groups, of which one has eighteen training images and others ever fewer, down to two."""
    kept = dict(zip(_SKEWED, (18, 16, 14, 12, 10, 9, 8, 7, 5, 4, 3, 2)))
    seen: dict[str, int] = dict.fromkeys(kept, 0)
    for part, label, picture in _emoji():
        if label in kept and (part == "test" or seen[label] < kept[label]):
            seen[label] += part == "train"
            yield part, label, picture


def _kinds() -> Iterator[Labelled]:
    """Seven kinds of things with plain names."""
    yield from ((part, _KINDS[group], picture) for part, group, picture in _emoji() if group in _KINDS)


def _sketches() -> Iterator[Labelled]:
    """The same as grey outlines."""
    stream = random.Random(5)
    for part, kind, picture in _kinds():
        outline = (
            picture.convert("L").filter(ImageFilter.CONTOUR).filter(ImageFilter.GaussianBlur(stream.uniform(0, 1)))
        )
        yield part, kind, outline.convert("RGB")


def _heaps() -> Iterator[Labelled]:
    """One to five small drawings of one thing, and how many there are."""
    split, names = _bundled("emoji"), ("one", "two", "three", "four", "five")

    def draw(name: str, stream: random.Random) -> Image.Image:
        picture, thing = (
            Image.new("RGB", (SIDE, SIDE), "white"),
            open_image(stream.choice(split.train)).resize((20, 20)),
        )
        for place in stream.sample(range(9), names.index(name) + 1):
            picture.paste(thing, (2 + 21 * (place % 3) + stream.randint(-1, 1), 2 + 21 * (place // 3)))
        return picture

    return _drawn(names, draw, 6)


def _letters() -> Iterator[Labelled]:
    """Ten letters, turned, of any size and colour, on noise."""
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
    """Handwritten digits of 8 x 8 pixels, scikit-learn's."""
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
            grey = (255 - bundle.images[place] * 255 / 16).astype(np.uint8)
            yield (
                part,
                names[label],
                Image.fromarray(grey).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC),
            )


def _shapes() -> Iterator[Labelled]:
    """Eight plain shapes of any colour, size and place, on noise."""
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
    """Ten textures in any two colours."""
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
    """Nine classes of nearly the same: a bar on noise, tilted by 0, 6, … 48 degrees."""

    def draw(name: str, stream: random.Random) -> Image.Image:
        angle = math.radians(int(name.split()[-1]) + stream.uniform(-2, 2))
        picture, (x, y) = _noise(stream), (SIDE / 2 + stream.uniform(-4, 4), SIDE / 2 + stream.uniform(-4, 4))
        reach = stream.uniform(18, 26)
        ends = (
            (x - reach * math.cos(angle), y - reach * math.sin(angle)),
            (x + reach * math.cos(angle), y + reach * math.sin(angle)),
        )
        ImageDraw.Draw(picture).line(ends, _colour(stream), stream.randint(4, 8))
        return picture

    return _drawn(tuple(f"bar at {angle}" for angle in range(0, 54, 6)), draw, 4)


SETS: dict[str, Callable[[], Iterator[Labelled]]] = {
    "emoji": _emoji, "kinds": _kinds, "skewed": _skewed, "sketches": _sketches, "heaps": _heaps, "digits": _digits,
    "letters": _letters, "shapes": _shapes, "textures": _textures, "tilts": _tilts,
}  # fmt: skip


@cache
def _bundled(name: str) -> adapt.data.Split:
    return adapt.data.load(name)


@cache
def _parts() -> dict[str, list[Item]]:
    """The training images of the groups, one drawing a concept, and all of the test images."""
    split = _bundled("emoji")
    drawings: dict[str, list[Item]] = {}
    for item in split.train + split.val:
        drawings.setdefault(item.group, []).append(item)
    one_each = [random.Random(concept).choice(own) for concept, own in drawings.items()]
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
