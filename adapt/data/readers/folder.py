"""Image folders: a folder with one folder of images for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain

from adapt.common.errors import AdaptError
from adapt.data.decoding.pictures import FORMATS
from adapt.data.readers import parts
from adapt.data.readers.base import FolderReader
from adapt.data.readers.rows import Listed, listed, one_each, to_split
from adapt.data.split import Split

IMAGE_SUFFIXES = tuple(sorted(chain.from_iterable(FORMATS.values())))


def read_folder(root: str | os.PathLike[str], ratios: Sequence[float] = parts.RATIOS, seed: int = 0) -> Split:
    """Return the data set in a folder of class folders, or in `train/`, `val/` and `test/` with class folders.

    `val/` may also be called `valid/` or `validation/`. A folder `unlabelled/` has images without a class.
    Images may be at any depth below the class folder; other files and hidden files are ignored (see
    `adapt.data.readers.passed_over`). Symbolic links are followed, and an image counts once, preferably by a path
    without links. `ratios` (train, val, test) and `seed` divide a folder without `train/`, `val/` and `test/`, and have
    no effect otherwise.

    Raises AdaptError if the folder is missing, if a class or one of `train/`, `val/` and `test/` is empty, or if links
    put an image from outside the folder into two of `train/`, `val/` and `test/`, or into two classes.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise AdaptError(f"image folder {root!r} does not exist. Expected a folder with a folder of images per class")
    rows: list[Listed] = []
    real: dict[str, str] = {}
    class_names: set[str] = set()
    for folder, part in part_folders(root):
        rows += _class_rows(folder, class_folders(folder, root), part, real)
        class_names.update(class_folders(folder, root))
    unlabelled = real_files(os.path.join(root, parts.UNLABELLED), IMAGE_SUFFIXES) if has_unlabelled(root) else {}
    real |= unlabelled
    rows += [listed(path, {}, parts.UNLABELLED) for path in sorted(unlabelled)]
    rows = one_each(rows, root, real, f"image folder {root!r}")
    return to_split(os.path.basename(root), root, rows, sorted(class_names), ratios, seed)


def part_folders(root: str) -> list[tuple[str, str]]:
    """Return (folder of class folders, part) for each part of the split (train, val, test), or [(`root`, "")]."""
    # A class may be called "train": it then holds images, where a part holds the folders of the classes.
    names = [name for name in subfolders(root) if name in parts.ALIASES and subfolders(os.path.join(root, name))]
    part_of = {name: parts.ALIASES[name] for name in names}
    if len(set(part_of.values())) < len(names):
        raise AdaptError(
            f"image folder {root!r} has two folders for the same part (train, val or test): {', '.join(names)}. Keep "
            "one folder for each part"
        )
    return [(os.path.join(root, name), part) for name, part in part_of.items()] or [(root, "")]


def has_unlabelled(root: str) -> bool:
    """Return whether a data set's folder has a folder of images without a class."""
    return parts.UNLABELLED in subfolders(root)


def check_all_labelled(folder: str, why: str) -> None:
    """Raise AdaptError, which says `why`, if `folder` has a folder of images without a class."""
    if has_unlabelled(folder):
        raise AdaptError(f"folder {folder!r} has a folder {parts.UNLABELLED}, but {why}. Move it elsewhere")


def class_folders(folder: str, root: str) -> list[str]:
    """Return the names of the classes' folders in `folder`, which is `root` or the folder of a part in `root`."""
    return [name for name in subfolders(folder) if folder != root or name != parts.UNLABELLED]


def _class_rows(folder: str, names: Sequence[str], part: str, real: dict[str, str]) -> list[Listed]:
    """Return the images of the class folders `names`, sorted, and add the real path of each image to `real`."""
    rows: list[Listed] = []
    for name in names:
        images = real_files(os.path.join(folder, name), IMAGE_SUFFIXES)
        real |= images
        rows += [listed(path, {"label": name}, part) for path in sorted(images)]
    if not rows:
        raise AdaptError(
            f"image folder {folder!r} has no images in folders of their classes. "
            f"Expected CLASS/IMAGE, with images of the formats {' '.join(IMAGE_SUFFIXES)}"
        )
    return rows


def subfolders(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the folders in `folder`, sorted, without hidden folders."""
    return [entry.name for entry in _visible(folder) if _is_folder(entry)]


def images_in(folder: str) -> list[str]:
    """Return the paths of the images at any depth in `folder`, sorted, without hidden files and folders.

    Symbolic links are followed. An image is listed once, by a path without links if there is such a path.
    """
    return sorted(real_files(folder, IMAGE_SUFFIXES))


def real_files(folder: str, suffixes: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Return {path: real path} of the files at any depth in `folder` whose names end in one of `suffixes`.

    The real path has no symbolic links. A file is listed once, by a path without links if there is such a path.
    """
    path_of: dict[str, str] = {}  # path by real path
    here, behind, linked = [folder], list[str](), list[str]()
    seen: set[str] = set()
    while here or behind:  # linked folders come last: a file that lies here keeps its own path
        home = (here or behind).pop(0)
        real = os.path.realpath(home)
        if real in seen:
            continue
        seen.add(real)
        for entry in _visible(home):
            if _is_folder(entry):
                (behind if entry.is_symlink() else here).append(entry.path)
            elif entry.name.lower().endswith(suffixes):
                if entry.is_symlink():
                    linked.append(entry.path)
                else:
                    path_of[os.path.join(real, entry.name)] = entry.path
    for path in linked:
        path_of.setdefault(os.path.realpath(path), path)
    return {path: real for real, path in path_of.items()}


def _visible(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Return the entries of `folder` that are not hidden, sorted by name, without what macOS adds to archives."""
    try:
        with os.scandir(os.fspath(folder)) as entries:
            visible = (each for each in entries if not each.name.startswith(".") and each.name != "__MACOSX")
            return sorted(visible, key=lambda each: each.name)
    except OSError as error:
        raise AdaptError(f"folder {os.fspath(folder)!r} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `is_dir` raises for a link that leads to itself
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


class Folder(FolderReader):
    name = "folder"
    takes = "a folder with one for each class"
    fallback = True

    def claims(self, spec: str) -> bool:
        return os.path.isdir(spec)

    def read(self, spec: str, root: str | None) -> Split:
        return read_folder(spec)
