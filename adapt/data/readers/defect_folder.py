"""Folders for anomaly localisation, as in MVTec AD: images in `test/KIND`, and masks in `ground_truth/KIND`."""

from __future__ import annotations

import os

from adapt.data.readers.folder import Folder, images_in, subfolders
from adapt.data.readers.rows import listed, to_split
from adapt.data.split import Split
from adapt.errors import AdaptError

NORMAL, ABNORMAL, _GOOD, _MASKS = "normal", "abnormal", "good", "ground_truth"


def read_defect_folder(root: str | os.PathLike[str]) -> Split:
    """Return the data of one object: `train/good`, `test/good`, `test/KIND` of each defect, `ground_truth/KIND`.

    Images in `good` have the class normal. All others have the class abnormal, with the kind of defect as the domain. A
    mask has the name of its image, perhaps followed by `_mask`.

    Raises AdaptError if there are no such folders, and for a defect without a mask.
    """
    root = os.path.abspath(root)
    if "test" not in subfolders(root):
        raise AdaptError(f"folder {root!r} has no folder test. Expected test/good, test/KIND, and ground_truth/KIND")
    rows = []
    for part in ("train", "test"):
        for kind in subfolders(os.path.join(root, part)) if part in subfolders(root) else ():
            name = NORMAL if kind == _GOOD else ABNORMAL
            masks = {} if name == NORMAL else _masks(root, kind)
            for path in images_in(os.path.join(root, part, kind)):
                mask = "" if name == NORMAL else _mask(path, masks)
                rows.append(listed(path, {"label": name, "mask": mask}, part, kind))
    if not any(row.item.label.files for row in rows):
        raise AdaptError(f"folder {root!r} has no image of a defect in test/KIND")
    return to_split(os.path.basename(root), root, rows, (NORMAL, ABNORMAL), (1.0, 0.0, 0.0), 0)


def _masks(root: str, kind: str) -> dict[str, str]:
    """Return the masks of one kind of defect, by the names of their images without suffixes."""
    folder = os.path.join(root, _MASKS, kind)
    if not os.path.isdir(folder):
        raise AdaptError(f"folder {root!r} has defects of the kind {kind!r}, and no masks of them in {_MASKS}/{kind}")
    return {_stem(path).removesuffix("_mask"): path for path in images_in(folder)}


def _mask(path: str, masks: dict[str, str]) -> str:
    if _stem(path) not in masks:
        raise AdaptError(f"{path!r} is an image of a defect, and has no mask of its name in {_MASKS}")
    return masks[_stem(path)]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


class DefectFolder(Folder):
    name = "defect_folder"
    takes = "defects:FOLDER"
    prefix = "defects:"
    fallback = False

    def claims(self, spec: str) -> bool:
        return spec.startswith(self.prefix)

    def read(self, spec: str, root: str | None) -> Split:
        return read_defect_folder(spec.removeprefix(self.prefix))
