"""Functions that open only regular files, and that write files so that existing ones are never damaged."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.shown import csv_text

if TYPE_CHECKING:
    from filelock import BaseFileLock

_PART = 16 * 2**10
_KINDS = ((stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError if `path` is not a regular file, because reading a pipe or a device may block or never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "special file")
        raise OSError(f"it is a {kind}, not a regular file")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Return the file at `path`, opened for binary reading. Raises OSError if `path` is not a regular file."""
    check_regular(path)
    return open(path, "rb")


def read_bounded(file: BinaryIO, most: int) -> bytes:
    """Return the bytes of `file` up to its end. Raises OSError as soon as more than `most` bytes have been read."""
    parts: list[bytes] = []
    left = most
    # in small parts, because decompression may make each thousands of times as large
    while part := file.read(_PART):
        left -= len(part)
        if left < 0:
            raise OSError(f"it has more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise AdaptError if no file can be written at `path`. Callers check the path before computing the content."""
    if os.path.isdir(path):
        raise AdaptError(f"cannot write {path}: it is a folder; give the path of a file")
    _check_above(Path(path))


def check_free(path: str | os.PathLike[str], what: str = "folder") -> None:
    """Raise AdaptError if `path` already exists, or if no `what` (by default a folder) can be created at `path`."""
    if os.path.lexists(path):
        raise AdaptError(f"{path} exists already; name a new {what}")
    _check_above(Path(path))


def check_outside(path: Path, data: str, called: str) -> None:
    """Raise AdaptError if `path` lies in `data`, which is `called` so, and is a folder of classes' folders."""
    if Path(data).is_dir() and path.resolve().is_relative_to(Path(data).resolve()):
        raise AdaptError(f"{path} is inside {called}, where a new folder would count as a class: choose another --out")


def _check_above(path: Path) -> None:
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise AdaptError(f"cannot write {path}: {above} is not a folder; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise AdaptError(f"cannot write {path}: there is no permission to write to {above}; choose another place")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a temporary file that atomically replaces `path` if the `with` block succeeds.

    Raises AdaptError if writing fails (as on a full disk). `path` is then unchanged, and the temporary file is removed.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.umask(mask := os.umask(0))
        temporary.chmod(0o666 & ~mask)  # mkstemp's files are private
        os.replace(temporary, path)
    except OSError as error:
        raise AdaptError(
            f"cannot write {path}: {error.strerror or error}; an existing file is unchanged. Free "
            "space or choose another place"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the first error says more
                temporary.unlink()


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which is renamed to `path` if the `with` block succeeds.

    Raises AdaptError if `path` exists or if writing fails (as on a full disk). The temporary folder is then removed.
    """
    check_free(path)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            new = Path(temporary) / path.name
            new.mkdir()
            yield new
            new.rename(path)
    except OSError as error:
        raise AdaptError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def locked(folder: Path, user: str) -> BaseFileLock:
    """Return a held lock on a folder, which is created. Raises AdaptError if another `user`, such as a run, has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise AdaptError(f"{folder} is in use by another {user}: wait, or choose another --out") from None
    except OSError as error:
        raise AdaptError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error
    return lock


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to the file at `path` atomically, replacing any existing content."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` to an indented JSON file atomically, replacing any existing content."""
    write_text(path, plain.dump(value, indent=2) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows`, which all have the same keys, to a CSV file atomically, escaping texts that look like formulas."""
    columns = list(rows[0])
    write_text(path, csv_text([columns, *([row[column] for column in columns] for row in rows)]))
