"""Files inside uncompressed tar archives, read by their places, which a process looks up once in each archive."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from functools import lru_cache

from adapt.common.disk import check_regular
from adapt.data.decoding.files import MOST_BYTES


def places(archive: str) -> Mapping[str, tuple[int, int]]:
    """Return {member: (offset, bytes)} of the files in an archive, in their order.

    Raises OSError if the archive cannot be opened, and ValueError if it is compressed or damaged, ends early, or has
    two files of one name.
    """
    check_regular(archive)
    state = os.stat(archive)
    return _places(archive, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _places(archive: str, changed: int, size: int) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(archive, "r:") as opened:
            for member in opened:
                if not member.isreg():
                    continue
                if member.name in found or member.sparse is not None:
                    raise ValueError(f"its file {member.name!r} is sparse, or there twice")
                found[member.name] = member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(f"it is damaged, or no uncompressed tar archive: {error}") from error
    if any(offset + length > size for offset, length in found.values()):
        raise ValueError("it ends within a file: copy the archive again")
    return found


def read_member(archive: str, member: str) -> bytes:
    """Return a file of an archive. Raises the errors of `places`, KeyError for an unknown member, and ValueError.

    A file larger than 256 MiB is no image, and is refused by a ValueError.
    """
    offset, length = places(archive)[member]
    if length > MOST_BYTES:
        raise ValueError(f"the file has {length:,} bytes, more than the limit of {MOST_BYTES:,}")
    with open(archive, "rb") as file:
        file.seek(offset)
        return file.read(length)
