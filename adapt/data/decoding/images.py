"""Opening images from any source: items, paths, bytes, arrays, tensors, web addresses and PIL images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import TypeVar

from PIL import Image

from adapt.data.decoding.addresses import fetched, is_address
from adapt.data.decoding.arrays import is_array, is_sequence, picture_of
from adapt.data.decoding.content import open_file
from adapt.data.decoding.orientation import size_of
from adapt.data.decoding.pictures import check_size, decoded, naming, opened, to_rgb
from adapt.data.decoding.regions import Box, check_form, check_inside, parted
from adapt.data.item import Item
from adapt.errors import AdaptError
from adapt.shown import brief

Opened = TypeVar("Opened")

_BYTES = (bytes, bytearray, memoryview)
ACCEPTED = "a path, the bytes of a file, a PIL image, an array (h, w, c) or a tensor (c, h, w)"


def open_image(source: object, *, turned: bool = False, urls: bool = False, name: str = "in memory") -> Image.Image:
    """Return the image of `source` as a PIL image in mode RGB.

    `source` is an item; a path, also `ARCHIVE.zip!MEMBER`, or for a region `IMAGE#xywh=X,Y,WIDTH,HEIGHT`; the bytes of
    an image file; a PIL image; an array `(h, w)` or `(h, w, c)`, or a tensor `(h, w)` or `(c, h, w)`, of uint8 or of
    floats from 0 to 1; with `urls` also an http or https address, which is fetched. With `turned`, the image is turned
    upright by its EXIF orientation before a region is cut out. Messages call the image `name` if it has no path.

    Raises AdaptError, naming the file, if it is missing or broken, if the image is too large or too narrow, or if a
    region is not inside its image. Also raises AdaptError for an array of another shape or range, an address without
    `urls`, and any other source.
    """
    if isinstance(source, Image.Image):
        with naming(name):
            return to_rgb(source, turned)
    if isinstance(source, _BYTES):
        return decoded(BytesIO(source), name, turned)
    if is_array(source):
        picture = picture_of(source)
        with naming(name):
            check_size(picture)
            return to_rgb(picture)
    if isinstance(source, str) and is_address(source):
        if not urls:
            raise AdaptError(f"{brief(source)} is an address, which is fetched only where urls=True allows it")
        return decoded(BytesIO(fetched(source)), source, turned)
    path, box = _parted(source)
    with open_file(path) as file:
        picture = decoded(file, path, turned)
    if box is None:
        return picture
    check_inside(box, picture.size, _path(source))
    return picture.crop(box)


def picture_batches(
    images: object, size: int, *, turned: bool = False, urls: bool = False
) -> Iterator[list[Image.Image]]:
    """Yield lists of up to `size` images, opened as `open_image` does.

    `images` is one source that `open_image` accepts, an iterable of such sources, or an array with images along its
    first axis. Raises AdaptError as `open_image` does.
    """
    yield from in_batches((open_image(image, turned=turned, urls=urls) for image in each_of(images)), size)


def in_batches(each: Iterable[Opened], size: int) -> Iterator[list[Opened]]:
    """Yield lists of up to `size` consecutive elements of an iterable."""
    batch: list[Opened] = []
    for one in each:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def each_of(images: object) -> Iterable[object]:
    """Return an iterable of image sources, from `images`: one source, an iterable, or an array of several images.

    Raises AdaptError if it is none of these.
    """
    single = (str, os.PathLike, Image.Image, Item, *_BYTES)
    if isinstance(images, single) or (is_array(images) and not is_sequence(images)):
        return (images,)
    if not isinstance(images, Iterable):
        raise AdaptError(f"{brief(images)} stands where images are expected: {ACCEPTED}, or a list of these")
    return images


def check_image(source: Item | str | os.PathLike[str], turned: bool = False) -> None:
    """Raise AdaptError if `open_image` would refuse an image; this takes less time and memory than opening it.

    A JPEG is decoded at an eighth of its size, which reads all of its data. An image above the size limit is refused by
    its header alone.
    """
    path, box = _parted(source)
    with warnings.catch_warnings(), open_file(path) as file, opened(file, path) as picture:
        warnings.simplefilter("ignore")  # Pillow's, about pictures that it can decode
        if box is not None:
            check_inside(box, size_of(picture, turned), _path(source))
        picture.draft(None, (1, 1))
        picture.load()
        if picture.mode.startswith(("I", "F")):
            to_rgb(picture)


def _parted(source: object) -> tuple[str, Box | None]:
    """Return the path of the full image and, if `source` is a region, its box, otherwise None."""
    path, box = parted(_path(source))
    if box is None:
        check_form(path)
    return path, box


def _path(source: object) -> str:
    if isinstance(source, Item) and not source.path:
        raise AdaptError(f"the text {source.text!r} stands in an image's place: give an item with an image")
    if isinstance(source, Item):
        return source.path
    if not isinstance(source, str | os.PathLike):
        raise AdaptError(f"{brief(source)} stands where an image is expected: {ACCEPTED}")
    return str(os.fspath(source))
