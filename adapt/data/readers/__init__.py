"""Readers of data sets, such as CSV files or image folders: each is a file here, named after its reader.

Other packages add readers by an entry point in the group `adapt.readers`, with the reader's name, or by `register`.
`load` calls the reader that claims a name, folder or file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from adapt.common.errors import AdaptError, nearest
from adapt.common.listing import Listing
from adapt.data.readers.base import Reader
from adapt.data.readers.names_file import read_names
from adapt.data.readers.rows import columns_of
from adapt.data.split import InconsistentError, Split

__all__ = ["Reader", "folder_of", "load", "names", "register"]

_Path = str | os.PathLike[str]
_OTHERS = frozenset({"base", "lines", "names_file", "parts", "passed_over", "published", "rows"})
_listing: Listing[Reader] = Listing(__name__, __path__, "adapt.readers", lambda: Reader, "reader", _OTHERS)
names, register = _listing.names, _listing.register

# which files to import for data that exists; a reader without an entry is found after these
_OF_PREFIX = {
    **dict.fromkeys(("boxes:", "coco:", "voc:", "yolo:"), "box_lists"), "defects:": "defect_folder",
    "domains:": "domain_folders", "examples:": "examples", "hf:": "hugging_face", "items:": "item_folders",
    "torchvision:": "torchvision_sets",
}  # fmt: skip
_OF_SUFFIX = {
    ".csv": ["csv_file"], ".tsv": ["csv_file"], ".txt": ["texts_file"], ".tar": ["tar_shards"],
    ".json": ["captions_file", "chats_file", "split_file"], ".jsonl": ["captions_file", "chats_file"],
    ".json.gz": ["captions_file", "split_file"], ".parquet": ["hugging_face"],
}  # fmt: skip
_OF_FOLDER = ["captioned_folder", "folder", "labelled_folder", "tar_shards"]
_OF_NAME = ["emoji_sets", "published_layout"]  # which precede a folder of the same name


def load(
    spec: _Path,
    root: _Path | None = None,
    names: _Path | None = None,
    unseen: bool = False,
    note: bool = False,
    columns: str | None = None,
) -> Split:
    """Return the data set `spec`, which is a name, a folder or a file that one of the readers accepts.

    The name of a data set takes precedence over a folder with the same name; write `./emoji` for the folder. `root` is
    the folder to which the paths in a list are relative, or the folder that contains the published data sets. `names`
    is a file with new names for the classes (see `read_names`). `columns` says what the columns of a table, or keys of
    rows, are called, as `image=img,label=cat`; `ignored=notes` leaves one out. With `unseen`, classes may have no
    training image, for a method that learns such classes. With `note`, a warning counts the files in a folder that look
    like images and are not in the data set.

    Raises AdaptError if no reader accepts `spec`, if `root` is missing or not needed, or if the data cannot be read.
    """
    given = os.fspath(spec)
    reader = _reader_of(given)
    if reader is None:
        raise _unknown(given)
    if root is None and reader.root == "needed":
        raise AdaptError(
            f"data {given!r} needs a root: {reader.root_is}. If {given!r} is an image folder, write './{given}'"
        )
    if root is not None and reader.root == "none":
        raise AdaptError(f"data {given!r} is {reader.takes}, which takes no root: leave out {os.fspath(root)!r}")
    if columns and not reader.takes_columns:
        raise AdaptError(f"data {given!r} is {reader.takes}, which has no columns: leave out {columns!r}")
    reader.columns = columns_of(columns) if columns else {}
    try:
        split = reader.read(given, None if root is None else os.fspath(root))
    except InconsistentError as error:
        if not unseen or error.split is None or error.of_rows:
            raise
        split = error.split
    if unseen:
        split = replace(split, unseen=True)  # which checks it again
    if note and (folder := reader.folder(given)) is not None:
        from adapt.data.readers.passed_over import note_files, passed_over

        note_files(split.name, passed_over(folder, split), ". `adapt data check` names them")
    return split if names is None else split.renamed(read_names(names))


def _unknown(spec: str) -> AdaptError:
    """Return the error for data that no reader accepts, because it is not there or of no known kind."""
    if os.path.exists(spec):
        takes = ", ".join(each.takes for each in _readers())
        return AdaptError(f"data {spec!r} is not known to any reader. Expected {takes}")
    folder, name = os.path.split(os.path.normpath(spec))
    beside: list[str] = []
    with suppress(OSError):  # there may be no such folder, or none that may be listed
        beside = difflib.get_close_matches(name, os.listdir(folder or "."))
    meant = next((path for each in beside if _reader_of(path := os.path.join(folder, each)) is not None), None)
    names = [name for each in _readers() for name in each.specs()]
    if meant is not None and not difflib.get_close_matches(spec, names, n=1):
        near = f"did you mean {meant!r}?"
    else:
        near = nearest(spec, names, "`adapt data list`")
    return AdaptError(f"data {spec!r} is not there: no file or folder has this path, and no data set this name; {near}")


def folder_of(spec: _Path) -> str | None:
    """Return the folder whose images should all be in the data set `spec`, or None if `spec` is a name or a list."""
    reader = _reader_of(os.fspath(spec))
    return None if reader is None else reader.folder(os.fspath(spec))


def _readers() -> Iterator[Reader]:
    return (reader() for reader in _listing.classes())


def _reader_of(spec: str) -> Reader | None:
    """Return the reader that accepts `spec`, or None. Raises AdaptError if more than one reader accepts `spec`."""
    claims = list(_listing.claiming(lambda reader: reader().claims(spec), _files_of(spec)))
    claims = [reader for reader in claims if not reader.fallback] or claims
    if len(claims) > 1:
        raise AdaptError(
            f"data {spec!r} is claimed by the readers {' and '.join(each.name for each in claims)}; expected one: "
            "uninstall the packages of the other readers"
        )
    return claims[0]() if claims else None


def _files_of(spec: str) -> list[str]:
    files = _OF_NAME + [file for prefix, file in _OF_PREFIX.items() if spec.startswith(prefix)]
    files += _OF_FOLDER if os.path.isdir(spec) else []
    return files + [file for suffix, own in _OF_SUFFIX.items() if spec.lower().endswith(suffix) for file in own]
