"""Folders of images with a `labels.csv` that lists the classes of each image: several, one or none."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import replace

from adapt.common.errors import AdaptError
from adapt.data.decoding.files import parted
from adapt.data.readers import parts
from adapt.data.readers.base import FolderReader
from adapt.data.readers.folder import images_in
from adapt.data.readers.lines import UNREADABLE, csv_reader
from adapt.data.readers.rows import real_paths
from adapt.data.split import Split

LIST = "labels.csv"


def read_labelled_folder(root: str | os.PathLike[str], ratios: Sequence[float] = parts.RATIOS, seed: int = 0) -> Split:
    """Return the split in the file `labels.csv` of the folder `root`, which has the format of `read_csv`.

    Raises the errors of `read_csv`, and AdaptError, naming the image, if an image in the folder is not listed.
    """
    from adapt.data.readers.csv_file import read_csv

    root = os.path.abspath(root)
    split = read_csv(os.path.join(root, LIST), root, ratios, seed)
    listed = set(real_paths(parted(item.path)[0] for item in (*split.items(), *split.unlabelled)).values())
    for path, real in real_paths(images_in(root)).items():
        if real not in listed:
            raise AdaptError(
                f"image folder {root!r} has a {LIST} that does not list {path!r}: add a line for the image, with an "
                "empty cell labels if the image has none of the classes, or remove the image"
            )
    return replace(split, name=os.path.basename(root))


class LabelledFolder(FolderReader):
    name = "labelled_folder"
    takes = "a folder with a labels.csv"
    reads = staticmethod(read_labelled_folder)

    def claims(self, spec: str) -> bool:
        """Return whether a folder has a file `labels.csv` with a column `path`."""
        try:
            return os.path.isdir(spec) and "path" in (csv_reader(os.path.join(spec, LIST)).fieldnames or ())
        except (*UNREADABLE, csv.Error):
            return False
