"""Decoding an image file to a PIL image in mode RGB, or to an AdaptError that names the file.

Decisions: transparency is laid over white; 16-bit grey keeps its high byte, as Pillow does for 16-bit colour; only the
first frame of an animation is read. EXIF orientation is applied if the caller says so: people's own photographs are
turned upright, and published data sets stay as they are stored. The published pipelines (torchvision's folder readers,
Dassl) do not turn images, and turning would change their numbers (see `orientation`).

HEIC is read by pillow-heif, an extra that is imported when needed, and AVIF by Pillow from 11.3 on.

A small file may claim a large picture: sides and pixels in the header are limited to what is decoded in 1 GiB.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO, cast

from PIL import Image, features
from PIL.Image import DecompressionBombError, Transpose

from adapt.common.errors import AdaptError, missing
from adapt.common.shown import one_line

logger = logging.getLogger("adapt")
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
# Pillow's errors for malformed files, and those beside them; RuntimeError is raised by the libraries of AVIF and HEIC.
_MALFORMED = (SyntaxError, ValueError, OSError, EOFError, LookupError, struct.error)
_BROKEN = (*_MALFORMED, RuntimeError, zlib.error, DecompressionBombError)


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of a PIL image, from 1 (upright) to 8."""
    if picture.format in _DECODED_UPRIGHT:
        return _UPRIGHT
    try:
        held = picture.getexif().get(_TAG, _UPRIGHT)
    except (*_MALFORMED, TypeError):  # viewers show such a photograph as it is stored
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


def turned_edges(
    edges: tuple[float, float, float, float], size: tuple[int, int], held: int
) -> tuple[float, float, float, float]:
    """Return a box (left, upper, right, lower) of a stored picture of `size`, turned upright with it."""
    (x0, y0, x1, y1), (width, height) = edges, size
    if held in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if held in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if held in _SIDEWAYS else (x0, y0, x1, y1)


# Pillow's names of the formats that are decoded, with suffixes. It knows more: one of them runs Ghostscript.
FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif"),
    "JPEG": (".jpeg", ".jpg"),
    "PNG": (".png",),
    "PPM": (".pgm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
RATIO = 100  # of the sides; resizing the shorter one to some hundred pixels multiplies the other as much
# Times `Image.MAX_IMAGE_PIXELS`, where Pillow only warns: room for all cameras' pictures, converted in under 1 GiB.
# WebP's own decoder holds a picture several times.
_PIXELS, _PIXELS_OF = 4 / 3, {"WEBP": 1 / 2}
_LIFT = "; save a smaller copy"
_BAND = 2**20  # pixels that are converted at a time

# The brands after `ftyp` in files of the container that HEIC and AVIF share.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_NO_HEIC = str(missing("HEIC", "pillow-heif", "heic"))
_NO_AVIF = 'AVIF needs Pillow 11.3 or later, built with libavif: pip install -U "pillow>=11.3"'

_NO_RANGE = "pixels of 32 bits have no fixed range; save it with 8 or 16 bits"


class LackingError(ValueError):
    """The error for an image whose format needs a library that is not here; the message says how to install it."""


def decoded(file: BinaryIO, name: str, turned: bool = False) -> Image.Image:
    """Return the image in `file` as a PIL image in mode RGB, turned upright by EXIF if `turned`.

    Raises AdaptError, with a message that calls the image `name`, if the image is broken, too large or too narrow.
    """
    with opened(file, name) as picture:
        return to_rgb(picture, turned)


@contextmanager
def opened(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Yield the undecoded PIL image in `file`; Pillow's errors in the `with` block are turned into an AdaptError."""
    with naming(repr(name)):
        picture = _opened(file)
        check_size(picture)
        yield picture


def _opened(file: BinaryIO) -> Image.Image:
    """Return the undecoded PIL image in `file`, whose format is recognised by its first bytes."""
    kind = _container_of(file)
    if kind == "HEIF":
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise LackingError(_NO_HEIC) from None
        return cast(Image.Image, HeifImageFile(file))  # without registering an opener in the process
    if kind == "AVIF" and not features.check("avif"):
        raise LackingError(_NO_AVIF)
    known = [name for name in FORMATS if name != "HEIF" and (name != "AVIF" or kind == "AVIF")]
    try:
        return Image.open(file, formats=known)
    except DecompressionBombError as error:  # which calls a panorama an attack
        most = int((Image.MAX_IMAGE_PIXELS or 0) * _PIXELS)
        raise ValueError(f"the image has more pixels than the limit of {most:,}{_LIFT}") from error


def _container_of(file: BinaryIO) -> str:
    """Return "HEIF" or "AVIF" if the first bytes of `file` have this format's signature, else "", and rewind `file`."""
    start = file.read(64)
    if not start:
        raise ValueError("the file is empty")
    file.seek(0, io.SEEK_SET)
    if start[4:8] != b"ftyp":
        return ""
    brands = [start[place : place + 4] for place in range(8, min(len(start), int.from_bytes(start[:4])), 4)]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIF" if any(brand in _HEIC_BRANDS for brand in brands) else ""


def check_size(picture: Image.Image) -> None:
    """Raise ValueError if an image has too many pixels or an extreme aspect ratio according to its header."""
    shorter, longer = sorted(picture.size)
    if not shorter:
        raise ValueError(f"the image has no pixels, as its size is {picture.width} x {picture.height}")
    if longer > RATIO * shorter:
        raise ValueError(
            f"the image is {picture.width} x {picture.height} pixels; the longer side may be at most {RATIO} times the "
            "shorter side"
        )
    limit = Image.MAX_IMAGE_PIXELS
    most = None if limit is None else int(limit * _PIXELS_OF.get(picture.format or "", _PIXELS))
    if most is not None and shorter * longer > most:
        raise ValueError(f"the image has {shorter * longer:,} pixels, more than the limit of {most:,}{_LIFT}")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn Pillow's errors in the `with` block into an AdaptError that names the image."""
    try:
        yield
    except _BROKEN as error:
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else one_line(error).rstrip(".")
        raise AdaptError(f"image {name} cannot be decoded: {reason}. Replace or remove the image") from error


def to_rgb(picture: Image.Image, turned: bool = False) -> Image.Image:
    """Return a PIL image converted to mode RGB and, if `turned`, turned upright by its EXIF orientation."""
    if picture.mode == "F":
        raise ValueError(_NO_RANGE)
    if picture.mode.startswith("I"):
        converted = _by_bands(picture, _high_byte)
    else:
        transparent = picture.has_transparency_data
        converted = _by_bands(picture, _over_white) if transparent else picture.convert("RGB")
        if transparent:
            _note_white()
    return upright(converted, orientation(picture)) if turned else converted


def _by_bands(picture: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return an image converted to RGB by calling `convert` on one band of rows at a time, to save memory."""
    rows = max(1, _BAND // picture.width)
    if picture.height <= rows:
        return convert(picture)
    rgb = Image.new("RGB", picture.size)
    for top in range(0, picture.height, rows):
        rgb.paste(convert(picture.crop((0, top, picture.width, min(top + rows, picture.height)))), (0, top))
    return rgb


@cache  # said once
def _note_white() -> None:
    logger.info("there are transparent images, which are laid over white")


def _over_white(picture: Image.Image) -> Image.Image:
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _high_byte(picture: Image.Image) -> Image.Image:
    """Return a 16-bit greyscale image scaled down to 8 bits, as an RGB image.

    Pillow's own conversion clips at 255 in some versions, which makes the image entirely white.
    """
    wide = picture.convert("I")
    lowest, highest = cast(tuple[int, int], wide.getextrema())
    if lowest < 0 or highest > 0xFFFF:
        raise ValueError(_NO_RANGE)
    return wide.point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
