"""Reading image files as bytes: on disk, or a member of a container, written `CONTAINER!MEMBER`.

A container is a zip, an uncompressed tar archive, a table (`TABLE.arrow!COLUMN/ROW`, and `/N` behind for one of a list
of images), a list that holds its images (`LIST.jsonl!ROW/N`), or a bundled data set whose images are drawn on demand
(`SET.scenes!PART/1.png`). A region of an image is written `photo.jpg#xywh=X,Y,WIDTH,HEIGHT`, in pixels from the upper
left (W3C Media Fragments).
"""

from __future__ import annotations

import hashlib
import lzma
import ntpath
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from importlib import import_module
from io import BytesIO
from math import ceil, floor
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

from adapt.common.disk import check_regular, open_regular, read_bounded
from adapt.common.errors import AdaptError, missing
from adapt.data.decoding.pictures import RATIO

if TYPE_CHECKING:
    from pyarrow import Table


Box = tuple[int, int, int, int]  # left, upper, right and lower edge, the latter two after the last pixel
_MOST = 10**9  # pixels, of which a path has nine digits at most
_REGION = re.compile(r"(.+)#xywh=(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})", re.DOTALL)


def region(path: str, edges: tuple[float, float, float, float]) -> str:
    """Return the path of a region of the image at `path`, which is the rectangle `edges` rounded outwards to pixels.

    `edges` are left, upper, right and lower. Raises ValueError if the rectangle is empty or has negative coordinates.
    """
    left, upper, right, lower = floor(edges[0]), floor(edges[1]), ceil(edges[2]), ceil(edges[3])
    if min(left, upper) < 0 or edges[0] >= edges[2] or edges[1] >= edges[3] or max(right, lower) >= _MOST:
        raise ValueError("expected 0 <= x0 < x1 and 0 <= y0 < y1, in pixels from the upper left corner")
    return f"{path}#xywh={left},{upper},{right - left},{lower - upper}"


def parted(path: str) -> tuple[str, Box | None]:
    """Split the path of a region into the path of the image and the box; for any other path, the box is None."""
    match = _REGION.fullmatch(path)
    if match is None:
        return path, None
    left, upper, width, height = map(int, match.groups()[1:])
    return match[1], (left, upper, left + width, upper + height)


def check_form(path: str) -> None:
    """Raise AdaptError for a path that contains `#xywh=` but is neither a valid region nor an existing file."""
    image, mark, box = path.rpartition("#xywh=")
    if mark and not os.path.exists(path):
        raise AdaptError(
            f"region {path!r} has the box {box!r}; expected X,Y,WIDTH,HEIGHT, four whole numbers of pixels from the "
            f"upper left corner, such as {os.path.basename(image)}#xywh=12,40,208,140"
        )


def check_inside(box: Box, size: tuple[int, int], path: str) -> None:
    """Raise AdaptError if a region's box is empty, extends beyond the image, or is too narrow."""
    left, upper, right, lower = box
    empty = left >= right or upper >= lower
    if empty or right > size[0] or lower > size[1]:
        wrong = "has no pixel in" if empty else "is not inside"
        raise AdaptError(
            f"region {path!r} {wrong} its image, which is {size[0]} x {size[1]} pixels: the box has x from {left} to "
            f"{right} and y from {upper} to {lower}. Correct the box or remove the region from the data"
        )
    shorter, longer = sorted((right - left, lower - upper))
    if longer > RATIO * shorter:
        raise AdaptError(
            f"region {path!r} is {right - left} x {lower - upper} pixels; the longer side may be at most {RATIO} times "
            "the shorter side. Correct the box or remove the region from the data"
        )


# Of one image's file: a larger one is not a photograph, and a member of an archive may be packed to almost nothing.
MOST_BYTES = 256 * 2**20
_SAMPLE = 4096  # bytes at either end of a file
_ENCRYPTED = 1  # the bit of a zip member's flags

# Errors of the file system and of archives; RuntimeError: an unsupported kind of zip.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


def is_address(source: str) -> bool:
    """Return whether `source` starts with http:// or https://."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def zip_root(archive: str | os.PathLike[str]) -> str:
    """Return the path prefix of an archive's members, such that `zip_root("a.zip") + "b.png"` is `"a.zip!b.png"`."""
    return f"{os.fspath(archive)}!"


class Stored(str):
    """The path of an image that a reader found in a container, and no list names: it may lead anywhere."""


def under(root: str, path: str, where: str) -> str:
    """Return `path` joined to the absolute folder `root`; if `root` is "", return `path` itself.

    The backslashes of a path that was written on Windows count as slashes, unless there is a file of that very name. An
    address of a file (`file://`) is its path. A path that is `Stored` is returned as it is.

    Raises AdaptError, with a message that starts with `where`, if the path leads out of `root` or is not a valid file
    name.
    """
    if isinstance(path, Stored):
        return str(path)
    if is_address(path):
        raise AdaptError(f"{where}: the image {path!r} is an address, and nothing is fetched: download it first")
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    try:
        valid = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise AdaptError(f"{where}: the image path {path!r} is not a valid file name. Correct or remove the path")
    if not root:
        return path
    joined = os.path.normpath(os.path.join(root, path))
    if ("\\" in path or ntpath.splitdrive(path)[0]) and not os.path.lexists(joined):
        return _from_windows(root, path, where)
    if not joined.startswith(os.path.join(root, "")):
        raise AdaptError(f"{where}: the image {path!r} is not under the root {root!r}. Give the images' root folder")
    return joined


def _from_windows(root: str, path: str, where: str) -> str:
    drive, _ = ntpath.splitdrive(path)
    if not drive:
        return under(root, path.replace("\\", "/"), where)
    steps = path.replace("\\", "/").split("/")
    ends = (steps[place:] for place in range(1, len(steps)))
    own = next((os.path.join(*end) for end in ends if os.path.lexists(os.path.join(root, *end))), None)
    hint = f"There is {own!r}: write all paths from there on" if own else "Write paths that start there"
    raise AdaptError(f"{where}: the image {path!r} is on the drive {drive!r}; expected a path below {root!r}. {hint}")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open the image file at `path`; a member of a container is read into memory.

    Raises AdaptError, naming the file, if the file is missing, cannot be opened, or is not a regular file.
    """
    path = os.fspath(path)
    with _named(path):
        for suffix, read in _CONTAINERS.items():
            container, mark, member = path.partition(f"{suffix}!")
            if mark:
                return BytesIO(read(container + suffix, member))
        return open_regular(path)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of the image file at `path`; for a region of an image, the box is appended as text.

    Raises AdaptError, naming the file, if the file is missing, cannot be read, or has more than 256 MiB.
    """
    image, box = parted(os.fspath(path))
    with open_file(image) as file, _named(image):
        return read_bounded(file, MOST_BYTES) + (b"" if box is None else repr(box).encode())


def sample_of(path: str) -> bytes:
    """Return bytes that differ between image files: the size and a hash of the first and last 4 KiB.

    Of an image in a zip archive, they are its size and checksum, and of one in another archive, or in a list, the size
    of that file, so that nothing is unpacked. They are empty for a file that cannot be read.
    """
    container, mark, member = path.rpartition("!")
    try:
        if mark and container.endswith(".zip"):
            entry = _open_zip(container, os.getpid()).getinfo(member)
            return f"{entry.file_size} {entry.CRC}".encode()
        if mark and not os.path.exists(path):
            return str(os.path.getsize(container)).encode()
        with open_regular(path) as file:
            size, ends = file.seek(0, os.SEEK_END), list[bytes]()
            for start in (0, max(0, size - _SAMPLE)):
                file.seek(start)
                ends.append(file.read(_SAMPLE))
        return hashlib.blake2b(f"{size} ".encode() + b"".join(ends), digest_size=16).digest()
    except _UNREADABLE:
        return b""


def file_id(path: str) -> str:
    """Return a hash (32 hex digits) by which the file of an image is known again in another place, such as an archive.

    A region of an image has that of the whole file. It is "" for a file that cannot be read.
    """
    try:
        return hashlib.blake2b(read_bytes(parted(path)[0]), digest_size=16).hexdigest()
    except AdaptError:
        return ""


def copies(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: first of the `paths` whose file has the same content} of all image files that are copies.

    Of files on disk, only those of one size that begin alike are read. An image that is drawn when it is asked for, and
    a file that cannot be read, is no copy.
    """
    alike, first_of = {"": list(dict.fromkeys(paths))}, dict[str, str]()
    for most in (0, _SAMPLE, MOST_BYTES):
        known: dict[str, list[str]] = {}
        for before, group in alike.items():
            for path in group if len(group) > 1 else ():
                if own := _content(path, most):
                    known.setdefault(f"{before} {own}", []).append(path)
        alike = known
    for first, *others in alike.values():
        first_of |= dict.fromkeys(others, first)
    return first_of


def _content(path: str, most: int) -> str | int:
    """Return a hash of at the `most` the first bytes of an image file, or its size; "" if there is none to compare."""
    container, mark, member = path.rpartition("!")
    with suppress(AdaptError, *_UNREADABLE):
        if most:
            with open_file(path) as file:
                return hashlib.blake2b(file.read(most), digest_size=16).hexdigest()
        if not mark or os.path.exists(path):
            return os.path.getsize(path)
        if container.endswith(".tar"):
            return tar_places(container)[member][1]
        if container.endswith(".zip"):
            return _open_zip(container, os.getpid()).getinfo(member).file_size
        return len(read_bytes(path)) if os.path.exists(container) else 0
    return ""


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turn errors of the file system and of archives in the `with` block into an AdaptError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise AdaptError(f"image {path!r} does not exist{_missing_folder(path)}") from None
    except KeyError:
        raise AdaptError(f"image {path!r} does not exist: the archive has no such member") from None
    except IsADirectoryError:
        raise AdaptError(f"image {path!r} is a folder: give the images in it") from None
    except _UNREADABLE as error:
        raise AdaptError(f"image {path!r} cannot be read: {error}. Replace or remove the image") from error


def _zip_member(archive: str, member: str) -> bytes:
    opened = _open_zip(archive, os.getpid())
    entry = opened.getinfo(member)
    if entry.flag_bits & _ENCRYPTED:
        raise ValueError("the archive is encrypted: save the archive without a password")
    if entry.file_size > MOST_BYTES:
        raise ValueError(f"the image unpacks to {entry.file_size:,} bytes, more than the limit of {MOST_BYTES:,}")
    with opened.open(entry) as file:
        return read_bounded(file, MOST_BYTES)  # type: ignore[arg-type]  # its reads are those of any file


@lru_cache(maxsize=8)
def _open_zip(archive: str, pid: int) -> zipfile.ZipFile:
    # One handle per process: after a fork, workers that share a file offset would read each other's bytes.
    check_regular(archive)
    return zipfile.ZipFile(archive)


def _arrow_cell(table: str, member: str) -> bytes:
    content, (column, _, number) = _open_arrow(table), member.rpartition("/")
    if column in content.column_names:
        cell = content[column][int(number)]
    else:  # of a list of images
        column, _, row = column.rpartition("/")
        cell = content[column][int(row)][int(number)]
    value = cell.as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise ValueError("the cell of the table contains no image")
    return value


@lru_cache(maxsize=64)
def _open_arrow(table: str) -> Table:
    try:
        import pyarrow
    except ImportError:
        raise ValueError(missing("a table", "the library pyarrow", "hf-data")) from None

    check_regular(table)
    # A memory map: only the rows that are needed are read, and processes share them.
    content = pyarrow.ipc.open_stream(pyarrow.memory_map(table)).read_all()
    content.validate(full=True)  # or a damaged table's offsets would lead out of memory and crash the process
    return content


def tar_places(archive: str) -> Mapping[str, tuple[int, int]]:
    """Return {member: (offset, bytes)} of the files in an uncompressed tar archive, in their order.

    A process looks them up once in each archive.

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


def tar_member(archive: str, member: str) -> bytes:
    """Return a file of a tar archive.

    Raises the errors of `tar_places`, KeyError for an unknown member, and ValueError for a file of more than 256 MiB.
    """
    offset, length = tar_places(archive)[member]
    if length > MOST_BYTES:
        raise ValueError(f"the file has {length:,} bytes, more than the limit of {MOST_BYTES:,}")
    with open(archive, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _elsewhere(module: str, name: str, container: str, member: str) -> bytes:
    """Return what the function `name` of a module beside, which is imported when asked for, returns for a member."""
    content: bytes = getattr(import_module(f"adapt.data.{module}"), name)(container, member)
    return content


_CONTAINERS: dict[str, Callable[[str, str], bytes]] = {  # by suffix; each is called with a container and a member
    ".zip": _zip_member,
    ".arrow": _arrow_cell,
    ".scenes": partial(_elsewhere, "emoji.questions", "png"),
    ".defects": partial(_elsewhere, "emoji.defects", "png"),
    ".tar": tar_member,
    ".jsonl": partial(_elsewhere, "decoding.inline", "read_member"),
    ".json": partial(_elsewhere, "decoding.inline", "read_member"),
}


def _missing_folder(path: str) -> str:
    """Return a hint that names the topmost missing folder above `path`, or "" if the folder of `path` exists."""
    missing, folder = "", os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        missing, folder = folder, os.path.dirname(folder)
    start = "paths in a list start from its root, by default the list's own folder"
    return f": there is no folder {missing!r} ({start})" if missing else ""
