"""Opening images from any source: items, paths, bytes, arrays, tensors, web addresses and PIL images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from PIL import Image

from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.decoding.files import Box, check_form, check_inside, is_address, open_file, parted
from adapt.data.decoding.pictures import check_size, decoded, naming, opened, size_of, to_rgb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from adapt.data.item import Item

    Pixels = NDArray[np.generic] | Tensor


_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
_NO_PIXELS = ("O", "U", "S", "T")  # numpy's kinds of objects and texts


def is_array(source: object) -> TypeGuard[Pixels]:
    """Return whether `source` is a numpy array, a tensor, or an object that converts to an array, but not a string."""
    return not isinstance(source, str) and all(hasattr(source, name) for name in ("__array__", "ndim", "shape"))


def picture_of(source: Pixels) -> Image.Image:
    """Return a PIL image made from an array `(h, w)` or `(h, w, c)`, or from a tensor `(h, w)` or `(c, h, w)`.

    Pixels are uint8, or floats from 0 to 1, with 1, 3 or 4 channels. Raises AdaptError for any other shape, data type
    or value range.
    """
    import numpy as np

    values = np.asarray(source) if isinstance(source, np.ndarray) or not hasattr(source, "detach") else _of(source)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in _MODES or 0 in values.shape:
        expected = "(c, h, w)" if hasattr(source, "detach") else "(h, w, c)"
        raise AdaptError(
            f"an image is an array of shape {tuple(source.shape)}; expected (h, w), or {expected} with 1, 3 or 4 "
            "channels as c"
        )
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # also for NaN
            raise AdaptError(
                f"an image is an array of floats from {values.min():g} to {values.max():g}; expected 0 to 1: scale the "
                "array. If the pixels were already normalised by a backbone's transform, call model(pixels) instead"
            )
        values = np.rint(255 * values.astype(np.float32)).astype(np.uint8)
    if values.dtype != np.uint8:
        raise AdaptError(f"an image is an array of {values.dtype}; expected uint8, or floats from 0 to 1")
    channels = values.shape[-1]
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if channels == 1 else values), _MODES[channels])


def _of(tensor: Tensor) -> NDArray[np.generic]:
    """Return a tensor `(h, w)` or `(c, h, w)` on any device as a numpy array `(h, w)` or `(h, w, c)`."""
    if tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
        kind = "sparse" if tensor.is_sparse else "quantised" if tensor.is_quantized else "meta"
        raise AdaptError(f"an image is a {kind} tensor; expected a dense tensor of uint8, or of floats from 0 to 1")
    on_cpu = tensor.detach().cpu()
    values: NDArray[np.generic] = (on_cpu.float() if on_cpu.is_floating_point() else on_cpu).numpy()
    return values.transpose(1, 2, 0) if values.ndim == 3 else values


Opened = TypeVar("Opened")

_BYTES = (bytes, bytearray, memoryview)
ACCEPTED = "a path, the bytes of a file, a PIL image, an array (h, w, c) or a tensor (c, h, w)"


def open_image(source: object, *, turned: bool = False, urls: bool = False, name: str = "in memory") -> Image.Image:
    """Open the image `source` and return a PIL image in mode RGB.

    `source` is an item, a path (such as `ARCHIVE.zip!MEMBER`, or `IMAGE#xywh=X,Y,WIDTH,HEIGHT` for a region), the bytes
    of an image file, a PIL image, an array `(h, w)` or `(h, w, c)`, or a tensor `(h, w)` or `(c, h, w)`. Arrays and
    tensors have uint8 values, or floats from 0 to 1. With `urls`, `source` can also be an http or https address to
    download. With `turned`, the image is turned upright by its EXIF orientation before a region is cut out. Error
    messages refer to an image without a path as `name`.

    Raises AdaptError, naming the file, if the file is missing or broken, if the image is too large or too narrow, or if
    a region is not inside its image. Also raises AdaptError for an array with an invalid shape or value range, for an
    address without `urls`, and for a source of any other type.
    """
    if isinstance(source, _BYTES):
        return decoded(BytesIO(source), name, turned)
    if is_array(source):
        source = picture_of(source)
    if isinstance(source, Image.Image):
        with naming(name):
            check_size(source)
            return to_rgb(source, turned)
    if isinstance(source, str) and is_address(source):
        if not urls:
            raise AdaptError(f"{brief(source)} is a web address, but downloads are not allowed: give urls=True")
        from adapt.data.decoding.addresses import fetched

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
    """Yield lists of up to `size` PIL images in mode RGB, opened by `open_image`.

    `images` is one source that `open_image` accepts, an iterable of such sources, or an array with images along its
    first axis. Raises the same errors as `open_image`.
    """
    yield from in_batches((open_image(image, turned=turned, urls=urls) for image in each_of(images)), size)


def in_batches(each: Iterable[Opened], size: int) -> Iterator[list[Opened]]:
    """Yield lists of up to `size` consecutive elements of an iterable."""
    rest = iter(each)
    while batch := list(islice(rest, size)):
        yield batch


def each_of(images: object) -> Iterable[object]:
    """Return an iterable of image sources from `images`, which is one source, an iterable, or an array of images.

    Raises AdaptError if `images` is of any other type.
    """
    single = (str, os.PathLike, Image.Image, *_BYTES)
    several = is_array(images) and (  # stacked along the first axis, or of objects such as paths
        images.ndim > 3 or (images.ndim > 0 and getattr(images.dtype, "kind", None) in _NO_PIXELS)
    )
    if isinstance(images, single) or (is_array(images) and not several):
        return (images,)
    if hasattr(images, "read"):  # an open file, whose lines are no images
        raise AdaptError(f"{brief(images)} is an open file; expected {ACCEPTED}: give what its read() returns")
    if not isinstance(images, Iterable):
        raise AdaptError(f"{brief(images)} is not an image; expected {ACCEPTED}, or a list of such images")
    return images


def image_size(path: str, turned: bool) -> tuple[int, int]:
    """Return the width and height of an image or a region, upright if `turned`, without decoding it.

    Raises AdaptError, naming the file, if it cannot be opened.
    """
    file_name, box = parted(path)
    if box is not None:
        return box[2] - box[0], box[3] - box[1]
    with warnings.catch_warnings(), open_file(file_name) as file, opened(file, file_name) as picture:
        warnings.simplefilter("ignore")  # Pillow's, about pictures that it can decode
        return size_of(picture, turned)


def image_sizes(item: Item) -> list[tuple[int, int]]:
    """Return the sizes of an item's images; images that cannot be opened are left out, as other checks report them."""
    sizes = []
    for path in item.paths:
        with suppress(AdaptError):
            sizes.append(image_size(path, item.turned))
    return sizes


def check_image(source: str | os.PathLike[str], turned: bool = False) -> None:
    """Raise AdaptError if `open_image` could not open an image; the check takes less time and memory than opening.

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
    """Return the path of the full image and the box of the region, or None for the box if `source` is not a region."""
    path, box = parted(_path(source))
    if box is None:
        check_form(path)
    return path, box


def _path(source: object) -> str:
    if not isinstance(source, str | os.PathLike):
        raise AdaptError(f"{brief(source)} is not an image; expected {ACCEPTED}")
    return str(os.fspath(source))
