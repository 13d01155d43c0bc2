"""Image folders: a folder with one folder of images for each class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from itertools import chain

from adapt.common.errors import AdaptError
from adapt.common.shown import first_of
from adapt.data.decoding.pictures import FORMATS
from adapt.data.readers import parts
from adapt.data.readers.base import FolderReader
from adapt.data.readers.rows import Listed, listed, one_each, to_split
from adapt.data.split import Split

logger = logging.getLogger("adapt")
_NOT_OURS = {"__MACOSX", "@eaDir"}  # what macOS adds to archives, and some storage to folders
_OF_IMAGES = {"images", "image", "imgs", "img", "pictures", "photos"}  # folders that are no class, wherever they are
IMAGE_SUFFIXES = tuple(sorted(chain.from_iterable(FORMATS.values())))


def read_folder(root: str | os.PathLike[str], ratios: Sequence[float] = parts.RATIOS, seed: int = 0) -> Split:
    """Return the data set in a folder of class folders, or in `train/`, `val/` and `test/` with class folders.

    The parts may have other usual names, such as `Training/` or `valid/` (see `adapt.data.readers.parts`). A folder
    `unlabelled/` has images without a class. Images may be at any depth below the class folder; other files and hidden
    files are ignored (see `adapt.data.readers.passed_over`). Symbolic links are followed, and an image counts once,
    preferably by a path without links. `ratios` (train, val, test) and `seed` divide a folder without `train/`, `val/`
    and `test/`, and have no effect otherwise.

    Raises AdaptError if the folder is missing, if a class or one of `train/`, `val/` and `test/` is empty, if the
    folders do not show which of them are the classes, or if links put an image from outside the folder into two of
    `train/`, `val/` and `test/`, or into two classes.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise AdaptError(f"image folder {root!r} does not exist. Expected a folder with a folder of images per class")
    rows: list[Listed] = []
    real: dict[str, str] = {}
    class_names: set[str] = set()
    for folder, part in part_folders(root):
        names = [name for name in subfolders(folder) if part or parts.part_of(name) != parts.UNLABELLED]
        found = {name: real_files(os.path.join(folder, name), IMAGE_SUFFIXES) for name in names}
        if not any(found.values()):
            raise AdaptError(
                f"image folder {folder!r} has no images in folders of their classes. "
                f"Expected CLASS/IMAGE, with images of the formats {' '.join(IMAGE_SUFFIXES)}"
            )
        for name, images in found.items():
            real |= images
            rows += [listed(path, {"label": name}, part) for path in sorted(images)]
        class_names.update(names)
    for name in unlabelled_folders(root):
        unlabelled = real_files(os.path.join(root, name), IMAGE_SUFFIXES)
        real |= unlabelled
        rows += [listed(path, {}, parts.UNLABELLED) for path in sorted(unlabelled)]
    rows = one_each(rows, root, f"image folder {root!r}", real)
    check_classes([row for row in rows if row.part != parts.UNLABELLED], root)
    return to_split(os.path.basename(root), root, rows, sorted(class_names), ratios, seed)


def part_folders(root: str) -> list[tuple[str, str]]:
    """Return (folder of class folders, part) for each part of the split (train, val, test), or [(`root`, "")].

    Raises AdaptError if two folders are the same part, if a part has no class folders, or if other folders beside the
    parts have images.
    """
    part_of = {name: parts.part_of(name) for name in subfolders(root)}
    divided = {
        name: part for name, part in part_of.items() if part in parts.NAMES and subfolders(os.path.join(root, name))
    }
    if len(set(divided.values())) < len(divided):
        raise AdaptError(
            f"image folder {root!r} has two folders for the same part (train, val or test): {', '.join(divided)}. Keep "
            "one folder for each part"
        )
    others = [name for name, part in part_of.items() if name not in divided and part != parts.UNLABELLED]
    if divided:
        unclear = others
    elif {part_of[name] for name in others} == {"", "train"}:
        unclear = []  # a class may be called "train": it holds images, as the folders of the other classes do
    else:
        unclear = [name for name in others if part_of[name]]
    if loose := [name for name in unclear if images_in(os.path.join(root, name))]:
        name, part = loose[0], part_of[loose[0]]
        why = f"{name!r} is a usual name of the part {part}, but has images and no folders of classes"
        if not part:
            why = f"{name!r} has images, but its name is not that of a part, as {', '.join(map(repr, divided))} is"
        raise AdaptError(
            f"image folder {root!r}: {why}. Expected CLASS/IMAGE, or "
            f"PART/CLASS/IMAGE with the parts {', '.join(parts.NAMES)}, and perhaps {parts.UNLABELLED}/IMAGE: "
            "rename or move the folder"
        )
    return [(os.path.join(root, name), part) for name, part in divided.items()] or [(root, "")]


def unlabelled_folders(root: str) -> list[str]:
    """Return the names of the folders in `root` whose images have no class."""
    return [name for name in subfolders(root) if parts.part_of(name) == parts.UNLABELLED]


def check_all_labelled(folder: str, why: str) -> None:
    """Raise AdaptError, which says `why`, if `folder` has a folder of images without a class."""
    for name in unlabelled_folders(folder):
        raise AdaptError(f"folder {folder!r} has a folder {name}, but {why}. Move it elsewhere")


def check_classes(rows: Iterable[Listed], root: str) -> None:
    """Raise AdaptError if the images in `root` may have other classes than the folders that they were read from.

    So it is if two classes have folders of the same name, if the only class has folders, if a folder in a class has the
    name of a part, and if the names of two classes differ in capitals, or in the name of a part, alone.
    """
    inside: dict[str, set[str]] = {}  # by class, the folders at any depth between its own and its images
    for item, part, _ in rows:
        above = os.path.relpath(item.path, root).split(os.sep)[1 + bool(part or item.domain) : -1]
        inside.setdefault(item.answer, set()).update(each for each in above if each.casefold() not in _OF_IMAGES)
    owner, alike, joined = dict[str, str](), dict[str, str](), dict[str, list[str]]()
    for name, folders in inside.items():
        known = {each.casefold(): each for each in sorted(folders)}
        same = next((each for each in inside if each != name and each.casefold() in known), None)
        shared = next((each for each in known if each in owner), None)
        inner = next(filter(parts.part_of, folders), None)
        # one letter may be a class, and its capital another
        other = alike.setdefault(parts.without_part(name).strip() if len(name) > 1 else name, name)
        if len(inside) == 1 and folders:
            seen = f"{name!r} is the only class, and has the folders {first_of([*map(repr, known.values())])}"
            advice = f"If these are classes or parts, give the folder {name!r} itself, or move them up"
        elif inner is not None:
            seen = f"the class {name!r} has a folder {inner!r}"
            advice = "If this is a part, put parts above classes: PART/CLASS/IMAGE"
        elif same is not None:
            seen = f"the class {name!r} has a folder with the name of the class {same!r}"
            advice = "Move its images to where they belong"
        elif shared is not None:
            seen = f"the classes {owner[shared]!r} and {name!r} both have a folder {known[shared]!r}"
            advice = (
                f"If {owner[shared]!r} is a part, call it train, val or test; if a domain, give domains:FOLDER; if a "
                "class with an item in each folder, give items:FOLDER"
            )
        elif other != name:
            seen = f"the names of the classes {other!r} and {name!r} are the same but for capitals or a part"
            advice = "Rename or join them; parts stand above classes: PART/CLASS/IMAGE"
        else:
            owner |= dict.fromkeys(known, name)
            if known:
                joined[name] = [*known.values()]
            continue
        raise AdaptError(
            f"image folder {root!r}: {seen}. {advice}. Or list the images in a .csv with the columns path,label,split"
        )
    if joined:
        name, inner_names = next(iter(joined.items()))
        logger.info(
            "image folder %r: images in folders inside a class are of the class, as those in %s of %r",
            root, first_of([*map(repr, inner_names)], 3), name,
        )  # fmt: skip


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
            visible = (each for each in entries if not each.name.startswith(".") and each.name not in _NOT_OURS)
            return sorted(visible, key=lambda each: each.name)
    except OSError as error:
        raise AdaptError(f"folder {os.fspath(folder)!r} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `is_dir` raises for a link that leads to itself
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


class Folder(FolderReader):
    name = "folder"
    takes = "a folder with one for each class"
    reads = staticmethod(read_folder)
    fallback = True

    def claims(self, spec: str) -> bool:
        return os.path.isdir(spec)
