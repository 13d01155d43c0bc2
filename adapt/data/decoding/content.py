"""Image files as bytes, including those that are drawn when they are read, as `SET.scenes!PART/NUMBER.png`."""

from __future__ import annotations

import os
from typing import BinaryIO

from adapt.data.decoding import files
from adapt.data.decoding.regions import parted
from adapt.data.emoji import defects, questions


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file as `adapt.data.decoding.files.open_file` does, including bundled drawings."""
    return files.open_file(path, _DRAWN)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read as `adapt.data.decoding.files.read_bytes` does, including drawings; a region's box follows the bytes."""
    image, box = parted(os.fspath(path))
    return files.read_bytes(image, _DRAWN) + (b"" if box is None else repr(box).encode())


_DRAWN: dict[str, files.MemberReader] = {
    ".scenes": lambda container, member: questions.scene(container.removesuffix(".scenes"), member).png(),
    ".defects": lambda container, member: defects.png(container.removesuffix(".defects"), member),
}
