"""The image files that a command is given: single images, or items of several images, opened one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from adapt.common import hub
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.shown import shown
from adapt.formats import PEFT_CONFIG


class ImageFile(NamedTuple):
    """An image file and its name in the output, which is the name in the .csv that lists the image, or its path.

    `item` is the name of the item of several images that it belongs to, or "", and `source` the .csv or folder where
    this name is known. `view` is the name of what it shows of the item, or "".
    """

    path: Path
    called: str
    item: str = ""
    source: str = ""
    view: str = ""


def is_adapter(path: Path) -> bool:
    """Return whether `path` is an adapter file, a hub name, or a folder that contains an adapter, such as a run."""
    inside = ("adapter.safetensors", PEFT_CONFIG)
    return hub.is_name(path) or path.suffix == ".safetensors" or any((path / name).is_file() for name in inside)


def image_files(images: Sequence[Path], items: bool = False) -> Iterator[ImageFile]:
    """Yield the image files in files, folders and .csv lists.

    With `items`, all images at any depth in a folder inside a given folder are an item. Raises AdaptError for an
    adapter, an address or an empty folder, and for `items` without a folder.
    """
    if items and not any(path.is_dir() for path in images):
        raise AdaptError("--items takes folders, in which each folder is an item: give a folder, or leave --items out")
    for path in images:
        if str(path).startswith(("http:/", "https:/")):
            raise AdaptError(
                f"{str(path).replace(':/', '://', 1)} is an address, and nothing is fetched: download the image, or "
                "use model.predict(ADDRESS, urls=True) in Python"
            )
        paths: list[str] = []
        if path.is_dir():
            from adapt.data.readers.folder import IMAGE_SUFFIXES, images_in

            paths = images_in(str(path))
        if is_adapter(path) and not paths:
            raise AdaptError(f"{path} is an adapter; expected an image: give all adapters before the images")
        if not (path.suffix or path.exists()):
            raise AdaptError(f"{path} does not exist; expected an adapter or an image")
        if path.suffix.lower() == ".csv":
            from adapt.data.readers.csv_file import read_paths

            listed = read_paths(path)
            yield from (ImageFile(Path(image), called, item, str(path), view) for image, called, item, view in listed)
        elif path.is_dir():
            from adapt.data.readers.passed_over import besides, note_files

            if not paths:
                raise AdaptError(f"the folder {path} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
            note_files(str(path), besides(path, paths))
            for each in paths:
                first, *deeper = Path(each).relative_to(path).parts if items else ("",)
                yield ImageFile(Path(each), each, str(path / first) if deeper else "", str(path))
        else:
            yield ImageFile(path, str(path))


def opened_items(
    files: Sequence[ImageFile], read: list[list[ImageFile]], views: bool, turnings: set[bool]
) -> Iterator[list[object]]:
    """Yield the images of each item that can be decoded, and append their files to `read`; print errors for the others.

    Items come in the order of their first files; a file of no item stands alone, and an item without a readable image
    is left out. `turnings` contains True to rotate images upright by EXIF, or False to read images as stored. If it
    contains both values, because the models differ, an image is its path, and each model decodes it itself. With
    `views`, each image is in a pair with the name of its view.
    """
    from adapt.data.decoding.images import open_image

    keys = ((file.source, file.item) if file.item else str(number) for number, file in enumerate(files))
    for members in grouped(zip(keys, files, strict=True)).values():
        own, images = list[ImageFile](), list[object]()
        for file in members:
            try:
                pictures = [open_image(file.path, turned=turned) for turned in turnings]
            except AdaptError as error:
                click.echo(f"Error: {shown(error)}", err=True)
                continue
            own.append(file)
            image = pictures[0] if len(pictures) == 1 else file.path
            images.append((file.view, image) if views else image)
        if own:
            read.append(own)
            yield images
