"""Folders for anomaly localisation, as in MVTec AD: images in `test/KIND`, and masks in `ground_truth/KIND`.

VisA's folders have their images and masks in a list, `split_csv/1cls.csv`, beside those of the objects.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.data.decoding.files import under
from adapt.data.decoding.masks import NORMAL
from adapt.data.readers import parts
from adapt.data.readers.base import FolderReader
from adapt.data.readers.folder import images_in, subfolders
from adapt.data.readers.lines import csv_rows
from adapt.data.readers.rows import Listed, listed, to_split
from adapt.data.split import Split

ABNORMAL, _GOOD, _MASKS = "abnormal", "good", "ground_truth"
_LIST = os.path.join("split_csv", "1cls.csv")


def read_defect_folder(root: str | os.PathLike[str]) -> Split:
    """Return the data set in the folder of one object, in the layout of the anomaly detection benchmark MVTec AD.

    Normal images are in `train/good`, `test/good` and perhaps `validation/good`. For each kind of defect, images are in
    `test/KIND` and masks in `ground_truth/KIND`. The classes are normal and abnormal, and the domain of an abnormal
    image is the kind of defect. A mask has the name of the image, optionally followed by `_mask`. Without a folder
    `ground_truth` there are no masks. Images that are in no folder are good images alone, and those of VisA are as its
    list of all objects says. Raises AdaptError if other folders are missing, and if only some images of defects have a
    mask.
    """
    root = os.path.abspath(root)
    if os.path.isfile(os.path.join(os.path.dirname(root), _LIST)):
        return _listed_object(*os.path.split(root))
    if not subfolders(root) and (images := images_in(root)):
        good = [listed(path, {"label": NORMAL, "mask": ""}, "train") for path in images]
        return _split(os.path.basename(root), root, good, masked=False)
    part_of = {folder: part for folder in subfolders(root) if (part := parts.part_of(folder)) in parts.NAMES}
    if "test" not in part_of.values():
        raise AdaptError(
            f"folder {root!r} has no folder test. Expected test/good, and test/KIND for each kind of defect, perhaps "
            "with masks in ground_truth/KIND, or good images alone, in no folder"
        )
    masked = _MASKS in subfolders(root)
    rows = []
    for folder, part in part_of.items():
        for kind in subfolders(os.path.join(root, folder)):
            name = NORMAL if kind == _GOOD else ABNORMAL
            masks = _masks(root, kind) if masked and name == ABNORMAL else {}
            for path in images_in(os.path.join(root, folder, kind)):
                rows.append(listed(path, {"label": name, "mask": masks.get(Path(path).stem, "")}, part, kind))
    if all(row.item.answer == NORMAL for row in rows):
        raise AdaptError(f"folder {root!r} has no image of a defect; expected at least one as test/KIND/IMAGE")
    return _split(os.path.basename(root), root, rows, masked)


def _split(name: str, root: str, rows: Sequence[Listed], masked: bool) -> Split:
    bare = next((row.item.path for row in rows if row.item.answer == ABNORMAL and not row.item.label.files), "")
    if masked and bare:
        raise AdaptError(f"{bare!r} is an image of a defect without a mask: add it, or leave out all masks")
    return to_split(name, root, rows, (NORMAL, ABNORMAL), (1.0, 0.0, 0.0), 0)


def objects_in(spec: str) -> list[str]:
    """Return the data of each object in `defects:FOLDER` of MVTec AD or of VisA by name, or `spec` if it has none."""
    folder = spec.removeprefix(DefectFolder.prefix)
    if folder == spec:
        return [spec]
    if os.path.isfile(os.path.join(folder, _LIST)):
        names = sorted({row[0] for row in _rows_of(folder)})
    else:
        names = [name for name in subfolders(folder) if "test" in subfolders(os.path.join(folder, name))]
    return [f"{DefectFolder.prefix}{os.path.join(folder, name)}" for name in names] or [spec]


def _listed_object(whole: str, name: str) -> Split:
    rows = []
    for thing, part, kind, image, mask in _rows_of(whole):
        if thing == name:
            label = NORMAL if kind.strip().casefold() == NORMAL else ABNORMAL
            cells = {"label": label, "mask": under(whole, mask, _LIST) if mask else ""}
            rows.append(listed(under(whole, image, _LIST), cells, part))
    if not rows:
        raise AdaptError(
            f"{os.path.join(whole, _LIST)!r} lists no object {name!r}: give the folder of one that it lists"
        )
    return _split(name, whole, rows, masked=any(row.item.label.files for row in rows))


def _rows_of(whole: str) -> list[list[str]]:
    """Return object, part, kind, image and mask of each line of VisA's list."""
    path = os.path.join(whole, _LIST)
    columns = "object", "split", "label", "image", "mask"
    rows = [[row.get(column, "") for column in columns] for row in csv_rows(path)[1]]
    if wrong := next((number for number, row in enumerate(rows, 2) if not all(row[:4])), None):
        raise AdaptError(f"{path} line {wrong} does not have the five columns object, split, label, image and mask")
    if other := next((number for number, row in enumerate(rows, 2) if row[1] not in parts.NAMES), None):
        raise AdaptError(f"{path} line {other} has the split {rows[other - 2][1]!r}; expected {', '.join(parts.NAMES)}")
    return rows


def _masks(root: str, kind: str) -> dict[str, str]:
    """Return {image name without suffix: path of the mask} for the masks of one kind of defect."""
    folder = os.path.join(root, _MASKS, kind)
    if not os.path.isdir(folder):
        raise AdaptError(f"folder {root!r} has defects of the kind {kind!r}, but no folder {_MASKS}/{kind}: add masks")
    return {Path(path).stem.removesuffix("_mask"): path for path in images_in(folder)}


class DefectFolder(FolderReader):
    name = "defect_folder"
    takes = "defects:FOLDER"
    reads = staticmethod(read_defect_folder)
    prefix = "defects:"
