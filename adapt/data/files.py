"""Image files as bytes: a path on disk, or `ARCHIVE.zip!MEMBER` for one inside a zip."""

from __future__ import annotations

import os
import zipfile
import zlib
from functools import lru_cache

from adapt.errors import AdaptError

_MARK = ".zip!"


def zip_root(archive: str | os.PathLike[str]) -> str:
    """The prefix that makes a member's name a path: `zip_root("a.zip") + "b.png"` is `"a.zip!b.png"`."""
    return f"{os.fspath(archive)}!"


def under(root: str, path: str, where: str) -> str:
    """`path` joined to the absolute folder `root`. Raises AdaptError when it leads out of `root`."""
    joined = os.path.normpath(os.path.join(root, path))
    if not joined.startswith(os.path.join(root, "")):
        raise AdaptError(f"{where}: the image {path!r} is not under {root!r}. Give the root folder of the images.")
    return joined


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of the file at `path`.

    Raises AdaptError, naming the file, when it is missing or cannot be read.
    """
    path = os.fspath(path)
    archive, mark, member = path.partition(_MARK)
    try:
        if mark:
            return _open_zip(archive + ".zip", os.getpid()).read(member)
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise AdaptError(f"Image {path!r} does not exist{_missing_folder(path)}.") from None
    except KeyError:
        raise AdaptError(f"Image {path!r} does not exist: the archive has no such member.") from None
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise AdaptError(f"Image {path!r} cannot be read: {error}. Replace it or take it out of the data.") from error


@lru_cache(maxsize=8)
def _open_zip(archive: str, pid: int) -> zipfile.ZipFile:
    # One handle per process: after a fork, workers that share a file offset would read each other's bytes.
    return zipfile.ZipFile(archive)


def _missing_folder(path: str) -> str:
    """The topmost missing folder above `path`: mostly a wrong root."""
    missing, folder = "", os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        missing, folder = folder, os.path.dirname(folder)
    return f": there is no folder {missing!r}. Check the root of the data set" if missing else ""
