"""Pictures of items and paths."""

from __future__ import annotations

import os
import warnings

from PIL import Image

from adapt.data.decoding.content import open_file
from adapt.data.decoding.pictures import decoded, naming, opened, to_rgb
from adapt.data.split import Item
from adapt.errors import AdaptError


def open_image(source: Item | str | os.PathLike[str] | Image.Image) -> Image.Image:
    """The picture of an item or a path (also `ARCHIVE.zip!MEMBER`), decoded, in mode RGB; one in memory is converted.

    Raises AdaptError, naming the file, when it is missing or broken, or a picture too large or too narrow.
    """
    if isinstance(source, Image.Image):
        with naming("in memory"):
            return to_rgb(source)
    with open_file(_path(source)) as file:
        return decoded(file, _path(source))


def check_image(source: Item | str | os.PathLike[str]) -> None:
    """Raises AdaptError for what `open_image` refuses, in less time and memory.

    A JPEG is decoded at an eighth of its size, which reads all of its data; a picture above the limit is refused by
    its header.
    """
    path = _path(source)
    with warnings.catch_warnings(), open_file(path) as file, opened(file, path) as picture:
        warnings.simplefilter("ignore")  # of Pillow, on what it can decode all the same
        picture.draft(None, (1, 1))
        picture.load()
        if picture.mode.startswith(("I", "F")):
            to_rgb(picture)


def _path(source: Item | str | os.PathLike[str]) -> str:
    if isinstance(source, Item) and not source.path:
        raise AdaptError(f"the text {source.text!r} stands in an image's place: there is nothing to open")
    return source.path if isinstance(source, Item) else os.fspath(source)
