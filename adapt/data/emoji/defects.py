"""The bundled data sets for anomaly localisation: drawings with masks, half of them with a scratch or a stain.

`emoji-defects` has drawings in the seen styles, `emoji-defects@STYLE` drawings in one style. `emoji-product` has one
drawing again and again, a little varied, as a camera sees the pieces of a production line.

The path of a drawing with a defect is `SET.defects!PART/NUMBER.png`, and that of its mask ends in `_mask.png`. Training
images have no defects.
"""

from __future__ import annotations

from io import BytesIO
from math import cos, pi, sin
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from adapt.data.decoding.files import zip_root
from adapt.data.decoding.images import open_image
from adapt.data.emoji import bundled
from adapt.data.item import Item
from adapt.data.split import Split

CLASSES = ("normal", "abnormal")
KINDS = ("scratch", "stain")
PRODUCT = "emoji-product"
PIECES = {"train": 20, "val": 0, "test": 40}  # of it in each part, half of those in the test with a defect
_MASK, _GOOD = "_mask.png", "_good.png"
_FINER = 4  # lines are drawn on a picture this many times larger, and scaled down
_COLOURS = ((20, 20, 20), (90, 60, 30), (120, 120, 120), (200, 30, 30))


def read(spec: str) -> Split:
    """Return the data set `spec`, such as `emoji-defects` or `emoji-product@STYLE`, in which some have a defect's mask.

    An item's domain is the drawing style, and its group is the concept, if there are several.
    """
    train, val, test = (tuple(_items(spec, part)) for part in bundled.PARTS)
    return Split(spec, CLASSES, train, val, test, root=zip_root(bundled.ARCHIVE))


def _items(spec: str, part: str) -> list[Item]:
    items, entries, alike = [], _entries(spec, part), spec.startswith(PRODUCT)
    spoilt = set(Random(f"{spec}/{part}").sample(range(len(entries)), 0 if part == "train" else len(entries) // 2))
    for number, entry in enumerate(entries):
        path, label, mask = zip_root(bundled.ARCHIVE) + entry["file"], CLASSES[0], ""
        drawn = f"{spec}.defects!{part}/{number:05}"
        if number in spoilt:
            path, label, mask = f"{drawn}.png", CLASSES[1], drawn + _MASK
        elif alike:
            path = f"{drawn}{_GOOD}"
        group = "" if alike else entry["concept"]
        items.append(Item.of(path=path, label=label, mask=mask, domain=entry["style"], group=group))
    return items


def _entries(spec: str, part: str) -> list[bundled.DrawnItem]:
    """Return the drawing of each item in a part of the data set."""
    entries = bundled.of_groups("test" if spec.startswith(PRODUCT) else part, spec.partition("@")[2])
    return entries[:1] * PIECES[part] if spec.startswith(PRODUCT) else entries


def png(container: str, member: str) -> bytes:
    """Return the PNG bytes of a drawing with a defect, or of the defect's mask, named `member` in `SET.defects`.

    Raises LookupError if there is no such drawing.
    """
    spec = container.removesuffix(".defects")
    part, _, name = member.partition("/")
    number, stream = int(name[:5]), Random(f"{spec}/{part}/{int(name[:5])}")
    picture = open_image(zip_root(bundled.ARCHIVE) + _entries(spec, part)[number]["file"])
    if spec.startswith(PRODUCT):
        picture = varied(picture, stream)
    if not member.endswith(_GOOD):
        picture, mask = planted(picture, stream)
    content = BytesIO()
    (mask if member.endswith(_MASK) else picture).save(content, "PNG")
    return content.getvalue()


def varied(drawing: Image.Image, stream: Random) -> Image.Image:
    """Return `drawing` turned by up to 5 degrees and moved by 2 pixels, up to 8 % lighter or darker, with noise."""
    moved: Any = stream.uniform(-2, 2), stream.uniform(-2, 2)  # whole pixels in PIL's types, and any in its code
    angle, ground = stream.uniform(-5, 5), drawing.getpixel((0, 0))
    turned = drawing.rotate(angle, Image.Resampling.BICUBIC, translate=moved, fillcolor=ground)
    lit = np.asarray(ImageEnhance.Brightness(turned).enhance(stream.uniform(0.92, 1.08)), dtype=np.float32)
    noise = np.random.default_rng(stream.getrandbits(32)).normal(0, 3, lit.shape)
    return Image.fromarray((lit + noise).round().clip(0, 255).astype(np.uint8))


def planted(drawing: Image.Image, stream: Random) -> tuple[Image.Image, Image.Image]:
    """Return a copy of `drawing` with a random defect, and a mask of the defect in mode L and of the same size."""
    side = drawing.width * _FINER
    picture, mask = drawing.resize((side, side)), Image.new("L", (side, side), 0)
    (_scratch if stream.choice(KINDS) == "scratch" else _stain)(picture, mask, stream)
    small = mask.resize(drawing.size, Image.Resampling.BOX).point(lambda value: 255 if value > 127 else 0)
    return picture.resize(drawing.size, Image.Resampling.LANCZOS), small


def _place(side: int, stream: Random) -> tuple[float, float]:
    margin = side / 20
    return stream.uniform(margin, side - margin), stream.uniform(margin, side - margin)


def _scratch(picture: Image.Image, mask: Image.Image, stream: Random) -> None:
    """Draw a scratch on `picture` and `mask`: a bent line whose length is a fifth to a third of the picture's side."""
    side = picture.width
    (x, y), angle, half = _place(side, stream), stream.uniform(0, pi), side * stream.uniform(0.1, 0.16)
    bend = stream.uniform(-0.03, 0.03) * side, stream.uniform(-0.03, 0.03) * side
    ends = [(x - half * cos(angle), y - half * sin(angle)), (x + half * cos(angle), y + half * sin(angle))]
    line = [ends[0], (x + bend[0], y + bend[1]), ends[1]]
    width = int(side * stream.uniform(0.024, 0.04))
    ImageDraw.Draw(picture).line(line, fill=stream.choice(_COLOURS), width=width)
    ImageDraw.Draw(mask).line(line, fill=255, width=width)


def _stain(picture: Image.Image, mask: Image.Image, stream: Random) -> None:
    """Draw a stain on `picture` and `mask`: a ragged spot whose width is an eighth to a fifth of the picture's side."""
    side = picture.width
    (x, y), radius, corners = _place(side, stream), side * stream.uniform(0.06, 0.11), 12
    turns = (2 * pi * corner / corners for corner in range(corners))
    edge = [(stream.uniform(0.6, 1.2) * radius, turn) for turn in turns]
    spot = [(x + far * cos(turn), y + far * sin(turn)) for far, turn in edge]
    ImageDraw.Draw(picture).polygon(spot, fill=stream.choice(_COLOURS))
    ImageDraw.Draw(mask).polygon(spot, fill=255)
