"""Facts about an image file, found by decoding it: whether it can be used, and what is unusual about it."""

from __future__ import annotations

import hashlib
import warnings
from typing import NamedTuple

from PIL import Image

from adapt.common.errors import AdaptError
from adapt.data.decoding.content import open_file
from adapt.data.decoding.orientation import orientation, size_of
from adapt.data.decoding.pictures import lacking, naming, opened, to_rgb


class Facts(NamedTuple):
    """Facts about one image file; a file with a `problem` is unusable, and has no other facts but perhaps `lacks`."""

    problem: str = ""
    lacks: str = ""
    """The library to install before the file can be read, with the command."""
    format: str = ""
    mode: str = ""
    wide: bool = False
    """Whether its channels have 16 bits."""
    size: tuple[int, int] = (0, 0)
    """Width and height, upright if it is turned."""
    frames: int = 1
    held: int = 1
    """Its EXIF orientation."""
    digest: bytes = b""
    """A hash of its pixels, or of a JPEG's bytes, equal for copies."""


def facts_of(path: str, turned: bool) -> Facts:
    """Decode the image file at `path` and return facts about the file, such as its format and size.

    A JPEG is decoded at an eighth of its size, which is faster but still reads all of its data.
    """
    lacks = ""
    try:
        with warnings.catch_warnings(), open_file(path) as file, naming(repr(path)):
            warnings.simplefilter("ignore")  # Pillow's, about pictures that it can decode
            lacks = lacking(file)
            with opened(file, path) as picture:
                size, wide = size_of(picture, turned), _is_wide(picture)
                frames = 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
                picture.draft(None, (1, 1))
                picture.load()
                held, mode = orientation(picture), picture.mode
                form = "JPEG" if picture.format == "MPO" else str(picture.format)  # a JPEG followed by another
                content = b"" if form == "JPEG" else to_rgb(picture, turned).tobytes()
            if form == "JPEG":
                file.seek(0)
                content = file.read()
    except AdaptError as error:
        return Facts(str(error), lacks)
    return Facts("", "", form, mode, wide, size, frames, held, _digest(size, content))


def _digest(size: tuple[int, int], content: bytes) -> bytes:
    return hashlib.blake2b(repr(size).encode() + content, digest_size=16).digest()


def _is_wide(picture: Image.Image) -> bool:
    """Return whether a PIL image, which is opened but not yet decoded, has 16 bits per channel."""
    parts = getattr(picture, "tile", ())
    return picture.mode.startswith("I") or any(";16" in str(part) for part in parts)
