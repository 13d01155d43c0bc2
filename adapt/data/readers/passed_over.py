"""Files of a folder that look like pictures but that no reader takes, counted and named."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from adapt.data.decoding.files import open_file
from adapt.data.decoding.pictures import opened
from adapt.data.readers import folder_of
from adapt.data.readers.folder import IMAGE_SUFFIXES, real_files
from adapt.data.split import Split
from adapt.errors import AdaptError
from adapt.shown import shown

logger = logging.getLogger("adapt")

# suffixes of pictures that are not decoded: raw photographs, layers, vectors, and rare formats
UNREAD = (
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".cur", ".dcm", ".dds", ".dng", ".eps", ".erf", ".exr",
    ".fits", ".hdr", ".icns", ".ico", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr", ".kdc", ".mrw",
    ".nef", ".nrw", ".orf", ".pcx", ".pef", ".psb", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sr2",
    ".srf", ".srw", ".svg", ".svgz", ".tga", ".wdp", ".x3f", ".xcf",
)  # fmt: skip


class PassedOver(NamedTuple):
    """A file that looks like a picture, and why it is not in the data."""

    path: str
    why: str

    @property
    def suffix(self) -> str:
        """Suffix of its name, in words."""
        return os.path.splitext(self.path)[1].lower() or "without a suffix"


def passed_over(source: str | os.PathLike[str], split: Split) -> list[PassedOver]:
    """Return files in the folder `source` that look like pictures and are not in `split`; none for a list or name."""
    folder = folder_of(source)
    if folder is None:
        return []
    return besides(folder, [path for item in split.items() for path in item.files])


def besides(folder: str | os.PathLike[str], used: Iterable[str]) -> list[PassedOver]:
    """Return the files in `folder`, at any depth, that look like pictures and are not among those `used`."""
    real_used = {os.path.realpath(path) for path in used}
    others = sorted(path for path, real in real_files(os.fspath(folder)).items() if real not in real_used)
    files = [PassedOver(path, _why(path)) for path in others]
    return [each for each in files if each.why]


def note_passed_over(source: str | os.PathLike[str], split: Split) -> None:
    """Log how many files were passed over, and their suffixes, if there are any."""
    note_files(split.name, passed_over(source, split), ". `adapt data check` names them")


def note_files(name: str, files: Sequence[PassedOver], where: str = "") -> None:
    """Log the files that were passed over in the folder called `name`, if there are any."""
    if files:
        logger.warning("%s: %s passed over: %s%s", shown(name), counted(files), by_suffix(files), where)


def counted(files: Sequence[PassedOver]) -> str:
    """Return the number of files in words, including the verb."""
    return (
        "1 file that looks like a picture is"
        if len(files) == 1
        else f"{len(files):,} files that look like pictures are"
    )


def by_suffix(files: Sequence[PassedOver]) -> str:
    """Return the number of files of each suffix, the most frequent first."""
    count = Counter(each.suffix for each in files)
    return ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(count.items(), key=lambda each: -each[1]))


def _why(path: str) -> str:
    """Return why a file that looks like a picture is not in the data; "" for one that does not look like one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return "in no folder of a class"
    if suffix in UNREAD:
        return f"{suffix} is not read"
    kind = _kind_of(path)
    return kind and f"it is {kind}, and is called otherwise"


def _kind_of(path: str) -> str:
    """Return the picture format of a file by its first bytes, whatever its name; "" if it is no picture."""
    try:
        with open_file(path) as file, opened(file, path) as picture:
            return str(picture.format)
    except AdaptError:  # it is not a picture
        return ""
