"""EXIF orientation (how the camera was held), and turning images upright by it.

People see photographs turned upright, while published pipelines take pixels as they are stored. The data that a model
is trained on decides between the two, and its adapter records it.
"""

from __future__ import annotations

import struct

from PIL import Image
from PIL.Image import Transpose

_TAG, _UPRIGHT, _SIDEWAYS = 0x0112, 1, range(5, 9)
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_ENTRIES = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # where Pillow looks for an orientation
_DECODED_UPRIGHT = ("HEIF", "TIFF")  # by their libraries, in any case
_MALFORMED = (SyntaxError, ValueError, OSError, EOFError, LookupError, TypeError, struct.error)


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of a PIL image, from 1 (upright) to 8."""
    if picture.format in _DECODED_UPRIGHT:
        return _UPRIGHT
    try:
        held = picture.getexif().get(_TAG, _UPRIGHT)
    except _MALFORMED:  # viewers show such a photograph as it is stored
        return _UPRIGHT
    return held if held in _TURNS else _UPRIGHT


def upright(picture: Image.Image, held: int) -> Image.Image:
    """Return a PIL image turned upright from the EXIF orientation `held`, without an orientation in its metadata."""
    if held == _UPRIGHT:
        return picture
    turned = picture.transpose(_TURNS[held])
    turned.info = {key: value for key, value in picture.info.items() if key not in _ENTRIES}
    return turned


def size_of(picture: Image.Image, turned: bool) -> tuple[int, int]:
    """Return the width and height of a PIL image without decoding; with `turned`, the size after turning upright."""
    width, height = picture.size
    return (height, width) if turned and orientation(picture) in _SIDEWAYS else (width, height)


def turns(transform: object) -> bool:
    """Return whether a backbone's `transform` expects images that are turned upright by their EXIF orientation."""
    return bool(getattr(transform, "turned", False))
