"""Reading image files as bytes, also from tar shards, and bundled images drawn on demand (`SET.scenes!PART/1.png`)."""

from __future__ import annotations

import os
from typing import BinaryIO

from adapt.data.decoding import files, inline, tars
from adapt.data.decoding.regions import parted


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an image on disk, in an archive or in a bundled data set, as `adapt.data.decoding.files.open_file` does."""
    return files.open_file(path, _MORE)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file or a bundled drawing; for a region of an image, the box is appended as text."""
    image, box = parted(os.fspath(path))
    return files.read_bytes(image, _MORE) + (b"" if box is None else repr(box).encode())


def _scene(container: str, member: str) -> bytes:
    from adapt.data.emoji import questions

    return questions.scene(container.removesuffix(".scenes"), member).png()


def _defect(container: str, member: str) -> bytes:
    from adapt.data.emoji import defects

    return defects.png(container.removesuffix(".defects"), member)


_MORE: dict[str, files.MemberReader] = {
    ".scenes": _scene,
    ".defects": _defect,
    ".tar": tars.read_member,
    **dict.fromkeys(inline.SUFFIXES, inline.read_member),
}
