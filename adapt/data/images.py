"""Decoding: every image file becomes an RGB picture, or an error that names the file.

Decisions: transparency is laid over white; 16-bit grey keeps its high byte, as Pillow does for 16-bit colour; of an
animation the first frame counts. EXIF orientation is not applied, because the published pipelines (torchvision's
folder readers, Dassl) do not apply it, and applying it would change their numbers.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from PIL import Image
from PIL.Image import DecompressionBombError

from adapt.data.files import open_file
from adapt.data.split import Item
from adapt.errors import AdaptError

# What Pillow raises on malformed files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error, DecompressionBombError)
_NO_RANGE = "pixels of 32 bits have no fixed range; save it with 8 or 16 bits"


def open_image(source: Item | str | os.PathLike[str] | Image.Image) -> Image.Image:
    """The picture of an item or a path (also `ARCHIVE.zip!MEMBER`), decoded, in mode RGB; one in memory is converted.

    Raises AdaptError, naming the file, when it is missing, broken, or larger than Pillow's limit on pixels.
    """
    if isinstance(source, Image.Image):
        with _naming("in memory"):
            return _to_rgb(source)
    with _opened(source) as picture:
        return _to_rgb(picture)


def check_image(source: Item | str | os.PathLike[str]) -> None:
    """Raises AdaptError for what `open_image` refuses, in less time and memory.

    A JPEG is decoded at an eighth of its size, which reads all of its data; a picture above the limit is refused by
    its header.
    """
    with warnings.catch_warnings(), _opened(source) as picture:
        warnings.simplefilter("ignore")  # of Pillow, on what it can decode all the same
        picture.draft(None, (1, 1))
        picture.load()
        if picture.mode.startswith(("I", "F")):
            _to_rgb(picture)


@contextmanager
def _opened(source: Item | str | os.PathLike[str]) -> Iterator[Image.Image]:
    path = source.path if isinstance(source, Item) else os.fspath(source)
    with open_file(path) as file, _naming(repr(path)):
        yield Image.open(file)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """What Pillow raises, as an AdaptError that names the image."""
    try:
        yield
    except _BROKEN as error:
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error).rstrip(".")
        raise AdaptError(f"Image {name} cannot be decoded: {reason}. Replace it or take it out of the data.") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        return _high_byte(picture).convert("RGB")
    if picture.mode == "F":
        raise ValueError(_NO_RANGE)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _high_byte(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey. Pillow's own conversion clips at 255 in some versions: all white."""
    wide = picture.convert("I")
    _, highest = cast(tuple[int, int], wide.getextrema())
    if highest > 0xFFFF:
        raise ValueError(_NO_RANGE)
    return wide.point(lambda value: value * (1 / 256)).convert("L")
