"""Image folders: one folder of images per class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NoReturn

from adapt.data import parts
from adapt.data.images import FORMATS
from adapt.data.rows import Row, one_each, to_split
from adapt.data.split import Split
from adapt.errors import AdaptError

IMAGE_SUFFIXES = tuple(sorted(chain.from_iterable(FORMATS.values())))


def read_folder(root: str | os.PathLike[str], ratios: Sequence[float] = parts.RATIOS, seed: int = 0) -> Split:
    """A folder of class folders; or of `train/`, perhaps `val/` (`valid/`, `validation/`) and `test/`, that hold those.

    Images count at any depth below their class folder; other files and hidden ones are passed over. Symbolic links are
    followed, and a picture counts once: where it lies, if it lies here. `ratios` (train, val, test) and `seed` divide a
    folder that is not divided yet; they do nothing to one that is.

    Raises AdaptError when the folder is missing, when a part or a class is empty, or when links put one picture from
    elsewhere into two parts or classes.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise AdaptError(f"Image folder {root!r} does not exist. Expected a folder with a folder of images per class.")
    rows: list[Row] = []
    class_names: set[str] = set()
    for folder, part in _part_folders(root):
        rows += _class_rows(folder, part)
        class_names.update(subfolders(folder))
    rows = one_each(rows, root, f"Image folder {root!r}")
    return to_split(os.path.basename(root), root, rows, sorted(class_names), ratios, seed)


def _part_folders(root: str) -> list[tuple[str, str]]:
    """Folders of class folders, each with its part; the root itself, with part "", where the data is not divided."""
    # A class may be called "train": it then holds images, where a part holds the folders of the classes.
    found = [name for name in subfolders(root) if name in parts.ALIASES and subfolders(os.path.join(root, name))]
    part_of = {name: parts.ALIASES[name] for name in found}
    if len(set(part_of.values())) < len(found):
        raise AdaptError(f"Image folder {root!r} has two folders for one part: {', '.join(found)}. Keep one of each.")
    return [(os.path.join(root, name), part) for name, part in part_of.items()] or [(root, "")]


def _class_rows(folder: str, part: str) -> list[Row]:
    """The images of all class folders in `folder`, sorted."""
    rows = [Row(path, name, part) for name in subfolders(folder) for path in images_in(os.path.join(folder, name))]
    if not rows:
        raise AdaptError(
            f"Image folder {folder!r} has no images in folders of their classes. "
            f"Expected CLASS/IMAGE, an image being one of: {' '.join(IMAGE_SUFFIXES)}."
        )
    return rows


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: str) -> list[str]:
    """The paths of the images at any depth in `folder`, sorted, without hidden ones.

    Symbolic links are followed. A picture is listed once, by a path without a link where there is one.
    """
    found: dict[str, str] = {}  # by real path
    linked: list[tuple[str, str]] = []
    for parent, files in _folders(folder):
        home = os.path.realpath(parent)
        for name in files:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                linked.append((path, os.path.realpath(path)))
            else:
                found[os.path.join(home, name)] = path
    for path, real in linked:
        found.setdefault(real, path)
    return sorted(found.values())


def _folders(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder at any depth, once, with the names of the images there; those behind links come last."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        for parent, children, files in os.walk(waiting.pop(0), onerror=_unreadable):
            real = os.path.realpath(parent)
            children[:] = [] if real in seen else sorted(name for name in children if not name.startswith("."))
            if real in seen:
                continue
            seen.add(real)
            paths = (os.path.join(parent, name) for name in children)
            waiting += [path for path in paths if os.path.islink(path)]  # the walk itself does not go there
            yield (
                parent,
                sorted(name for name in files if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)),
            )


def _unreadable(error: OSError) -> NoReturn:
    raise AdaptError(f"Folder {error.filename!r} cannot be read: {error.strerror}.") from error
