"""Files in a data set's folder that look like images but are not part of the data set."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from adapt.common.errors import AdaptError
from adapt.common.shown import shown
from adapt.data.decoding.files import open_file
from adapt.data.decoding.pictures import opened
from adapt.data.readers.folder import IMAGE_SUFFIXES, real_files
from adapt.data.split import Split

logger = logging.getLogger("adapt")

# suffixes of pictures that are not decoded: raw photographs, layers, vectors, and rare formats
UNREAD = (
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".cur", ".dcm", ".dds", ".dng", ".eps", ".erf", ".exr",
    ".fits", ".hdr", ".icns", ".ico", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr", ".kdc", ".mrw",
    ".nef", ".nrw", ".orf", ".pcx", ".pef", ".psb", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sr2",
    ".srf", ".srw", ".svg", ".svgz", ".tga", ".wdp", ".x3f", ".xcf",
)  # fmt: skip


class PassedOver(NamedTuple):
    """A file in a data set's folder that looks like an image, and the reason why the file is not in the data set."""

    path: str
    why: str


def passed_over(folder: str, split: Split) -> list[PassedOver]:
    """Return the files in `folder` that look like images but are not in `split`."""
    return besides(folder, [path for item in (*split.items(), *split.unlabelled) for path in item.files])


def besides(folder: str | os.PathLike[str], used: Iterable[str]) -> list[PassedOver]:
    """Return the files in `folder`, at any depth, that look like images but are not among the paths `used`."""
    real_used = {os.path.realpath(path) for path in used}
    others = sorted(path for path, real in real_files(os.fspath(folder)).items() if real not in real_used)
    files = [PassedOver(path, _why(path)) for path in others]
    return [each for each in files if each.why]


def note_files(name: str, files: Sequence[PassedOver], where: str = "") -> None:
    """Log a warning that `files` in the folder called `name` were not used, unless `files` is empty."""
    if files:
        logger.warning("%s: %s passed over: %s%s", shown(name), counted(files), by_suffix(files), where)


def counted(files: Sequence[PassedOver]) -> str:
    """Return the start of a sentence with the number of files, such as "3 files that look like pictures are"."""
    return (
        "1 file that looks like a picture is"
        if len(files) == 1
        else f"{len(files):,} files that look like pictures are"
    )


def by_suffix(files: Sequence[PassedOver]) -> str:
    """Return text with the number of files of each suffix, such as "2 .cr2, 1 .psd", most frequent suffix first."""
    count = Counter(os.path.splitext(each.path)[1].lower() or "without a suffix" for each in files)
    return ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(count.items(), key=lambda each: -each[1]))


def _why(path: str) -> str:
    """Return the reason why an image-like file is not in the data, or "" if the file does not look like an image."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return "in no folder of a class"
    if suffix in UNREAD:
        return f"{suffix} is not read"
    try:
        with open_file(path) as file, opened(file, path) as picture:
            return f"it is {picture.format}, and is called otherwise"
    except AdaptError:  # it is not a picture
        return ""
