"""Folders of images with captions: beside each `NAME.jpg` a `NAME.txt` with one text on each line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.data.readers import parts
from adapt.data.readers.base import FolderReader
from adapt.data.readers.folder import images_in, subfolders
from adapt.data.readers.lines import read_lines
from adapt.data.readers.rows import Listed, check_parts, listed, to_split
from adapt.data.split import Split


def read_captioned_folder(root: str | os.PathLike[str], ratios: Sequence[float] = parts.RATIOS, seed: int = 0) -> Split:
    """Return the images at any depth in `root`, paired with the lines of the .txt files of the same names.

    The folder `train/` and, optionally, `val/` and `test/` define the split. Without these folders, images are divided
    by `ratios` and `seed`. Raises AdaptError, naming the image, if an image has no text file or an empty text file.
    """
    root = os.path.abspath(root)
    rows: list[Listed] = []
    for path in images_in(root):
        text = Path(path).with_suffix(".txt")
        lines = read_lines(text) if text.is_file() else []
        if not lines:
            raise AdaptError(
                f"image folder {root!r} has texts for images, but {path!r} has no text: write one to {text.name}, or "
                "remove the image"
            )
        part = parts.part_of(os.path.relpath(path, root).split(os.sep)[0])
        rows += [listed(path, {"text": line}, part if part in parts.NAMES else "") for line in lines]
    check_parts(rows, f"image folder {root!r}", "Move it into one of the folders for these")
    return to_split(os.path.basename(root), root, rows, None, ratios, seed)


class CaptionedFolder(FolderReader):
    name = "captioned_folder"
    takes = "a folder with a .txt beside each image"
    reads = staticmethod(read_captioned_folder)

    def claims(self, spec: str) -> bool:
        """Return whether a folder, or `train`, `val` or `test` in it, has an image with a .txt of the same name."""
        if not os.path.isdir(spec):
            return False
        root = os.path.abspath(spec)
        divided = [name for name in subfolders(root) if parts.part_of(name) in parts.NAMES]
        homes = (root, *(os.path.join(root, name) for name in divided))
        return any(
            os.path.dirname(path) in homes and Path(path).with_suffix(".txt").is_file() for path in images_in(root)
        )
