"""Folders of items of several images each: `CLASS/ITEM/IMAGE`."""

from __future__ import annotations

import os

from adapt.common.errors import AdaptError
from adapt.data.readers import parts
from adapt.data.readers.base import FolderReader
from adapt.data.readers.folder import check_all_labelled, images_in, part_folders, subfolders
from adapt.data.readers.rows import in_bags, listed, one_each, to_split
from adapt.data.split import Split


def read_item_folders(root: str | os.PathLike[str]) -> Split:
    """Return the data set in a folder with the layout `CLASS/ITEM/IMAGE`, or `PART/CLASS/ITEM/IMAGE`.

    A part is `train`, `val` or `test`; without parts, items are divided by adapt's ratios. All images at any depth in a
    folder `ITEM` are one item, and so is an image that lies in the folder of its class. Raises AdaptError if there are
    no such images, or if symbolic links put an image into two items.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise AdaptError(f"folder {root!r} does not exist. Expected a folder per class, each with a folder per item")
    check_all_labelled(root, "items need labels")
    rows = []
    for folder, part in part_folders(root):
        for name in subfolders(folder):
            home = os.path.join(folder, name)
            images = [(path, "") for path in images_in(home) if os.path.dirname(path) == home]
            for item in subfolders(home):
                inside = os.path.join(home, item)
                images += [(path, os.path.relpath(inside, root)) for path in images_in(inside)]
            rows += [listed(path, {"label": name, "group": bag}, part)._replace(bag=bag) for path, bag in images]
    if not rows:
        raise AdaptError(f"folder {root!r} has no images in folders of classes and items. Expected CLASS/ITEM/IMAGE")
    where = f"folder {root!r}"
    rows = in_bags(one_each(rows, root, where), where)
    return to_split(os.path.basename(root), root, rows, None, parts.RATIOS, seed=0)


class ItemFolders(FolderReader):
    name = "item_folders"
    takes = "items:FOLDER"
    reads = staticmethod(read_item_folders)
    prefix = "items:"
