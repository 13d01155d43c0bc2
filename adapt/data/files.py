"""Image files as bytes: on disk, or `ARCHIVE.zip!MEMBER`, `TABLE.arrow!COLUMN/ROW`, `SET.scenes!PART/NUMBER.png`.

The last one is a picture that is drawn when it is read, see `adapt.data.questions`.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO

from adapt.errors import AdaptError


def zip_root(archive: str | os.PathLike[str]) -> str:
    """The prefix that makes a member's name a path: `zip_root("a.zip") + "b.png"` is `"a.zip!b.png"`."""
    return f"{os.fspath(archive)}!"


def under(root: str, path: str, where: str) -> str:
    """`path` joined to the absolute folder `root`. Raises AdaptError when it leads out of `root`."""
    joined = os.path.normpath(os.path.join(root, path))
    if not joined.startswith(os.path.join(root, "")):
        raise AdaptError(f"{where}: the image {path!r} is not under {root!r}. Give the root folder of the images.")
    return joined


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file at `path`, open for reading: one on disk is read as it is needed, one in an archive at once.

    Raises AdaptError, naming the file, when it is missing or cannot be opened.
    """
    path = os.fspath(path)
    with _named(path):
        for suffix, read in ((".zip", _zip_member), (".arrow", _arrow_cell), (".scenes", _scene)):
            container, mark, member = path.partition(f"{suffix}!")
            if mark:
                return BytesIO(read(container + suffix, member))
        return open(path, "rb")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of the file at `path`.

    Raises AdaptError, naming the file, when it is missing or cannot be read.
    """
    with open_file(path) as file, _named(os.fspath(path)):
        return file.read()


@contextmanager
def _named(path: str) -> Iterator[None]:
    """What the file system and the archives raise, as an AdaptError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise AdaptError(f"Image {path!r} does not exist{_missing_folder(path)}.") from None
    except KeyError:
        raise AdaptError(f"Image {path!r} does not exist: the archive has no such member.") from None
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        raise AdaptError(f"Image {path!r} cannot be read: {error}. Replace it or take it out of the data.") from error


def _zip_member(archive: str, member: str) -> bytes:
    return _open_zip(archive, os.getpid()).read(member)


@lru_cache(maxsize=8)
def _open_zip(archive: str, pid: int) -> zipfile.ZipFile:
    # One handle per process: after a fork, workers that share a file offset would read each other's bytes.
    return zipfile.ZipFile(archive)


def _arrow_cell(table: str, member: str) -> bytes:
    column, _, row = member.rpartition("/")
    content: bytes = _open_arrow(table)[column][int(row)].as_py()["bytes"]
    return content


@lru_cache(maxsize=64)
def _open_arrow(table: str) -> Any:
    import pyarrow

    # A memory map: only the rows that are asked for are read, and processes share them.
    return pyarrow.ipc.open_stream(pyarrow.memory_map(table)).read_all()


def _scene(scenes: str, member: str) -> bytes:
    from adapt.data import questions  # not above: it reads the drawings by way of this module

    return questions.scene(scenes.removesuffix(".scenes"), member).png()


def _missing_folder(path: str) -> str:
    """The topmost missing folder above `path`: mostly a wrong root."""
    missing, folder = "", os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        missing, folder = folder, os.path.dirname(folder)
    return f": there is no folder {missing!r}. Check the root of the data set" if missing else ""
