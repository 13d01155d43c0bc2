"""The readers in one place, and `load`, which picks one by what it is given. No image is opened by any of them."""

from __future__ import annotations

import os

from adapt.data import bundled
from adapt.data.csv_file import read_csv
from adapt.data.folder import read_folder
from adapt.data.split import Split
from adapt.data.split_file import read_split
from adapt.errors import AdaptError, nearest

__all__ = ["load", "read_csv", "read_folder", "read_split"]


def load(spec: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Split:
    """The data set that `spec` stands for: a bundled name, a folder, a `.csv`, a `.json` or a `.json.gz`.

    `root` is the folder that the paths inside a file start from. A bundled name wins over a folder of that name;
    write `./emoji` for the folder.

    Raises AdaptError when `spec` is none of these, or as its reader does.
    """
    text = os.fspath(spec)
    is_name, is_folder = bundled.is_bundled(text), os.path.isdir(text)
    if root is not None and (is_name or is_folder):
        raise AdaptError(f"Data {text!r} has its images with it: root {os.fspath(root)!r} is for .csv and .json only.")
    if is_name:
        return bundled.read_bundled(text)
    if is_folder:
        return read_folder(text)
    if os.path.isfile(text) and text.endswith(".csv"):
        return read_csv(text, root)
    if os.path.isfile(text) and text.endswith((".json", ".json.gz")):
        return read_split(text, root)
    raise AdaptError(
        f"Data {text!r} is neither a folder, nor a .csv, .json or .json.gz file that exists, nor a bundled set: "
        f"{nearest(text, bundled.names())}."
    )
