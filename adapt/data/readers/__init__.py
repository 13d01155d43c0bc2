"""The readers in one place, and `load`, which picks one by what it is given. No image is opened by any of them."""

from __future__ import annotations

import os

from adapt.data.emoji import bundled
from adapt.data.readers import published, torchvision_sets
from adapt.data.readers.captioned_folder import is_captioned, read_captioned_folder
from adapt.data.readers.captions_file import is_captions_file, read_captions_file
from adapt.data.readers.csv_file import read_csv
from adapt.data.readers.defect_folder import read_defect_folder
from adapt.data.readers.descriptors_file import read_descriptors
from adapt.data.readers.domain_folders import read_domain_folders
from adapt.data.readers.folder import read_folder
from adapt.data.readers.hugging_face import read_hugging_face
from adapt.data.readers.labelled_folder import is_labelled, read_labelled_folder
from adapt.data.readers.names_file import read_names
from adapt.data.readers.published_layout import read_published
from adapt.data.readers.split_file import read_split
from adapt.data.readers.texts_file import read_list
from adapt.data.split import Split
from adapt.errors import AdaptError, nearest

__all__ = [
    "load",
    "read_captioned_folder",
    "read_captions_file",
    "read_csv",
    "read_defect_folder",
    "read_descriptors",
    "read_domain_folders",
    "read_folder",
    "read_hugging_face",
    "read_labelled_folder",
    "read_names",
    "read_published",
    "read_split",
    "read_torchvision",
]

read_torchvision = torchvision_sets.read_torchvision
_TORCHVISION, _HUGGING_FACE, _DOMAINS, _DEFECTS = "torchvision:", "hf:", "domains:", "defects:"
_Path = str | os.PathLike[str]


def load(spec: _Path, root: _Path | None = None, names: _Path | None = None) -> Split:
    """The data set that `spec` stands for.

    `spec` is a bundled name; a published one (`oxford_pets` or `OxfordPets`), with `root` the folder that holds all
    published data sets' own folders; `torchvision:NAME`, with torchvision's `root`; `hf:NAME_OR_FOLDER` of the library
    datasets; `domains:FOLDER`, a folder of domains that hold class folders; `defects:FOLDER`, one object's folder of
    images with and without defects, and masks; an image folder, of pairs where texts lie beside the images, of images
    of several classes where a `labels.csv` does; a `.txt` with a text a line, to learn from texts alone; or a `.csv`, a
    `.json`, a `.json.gz` or a `.jsonl`, with `root` the folder that the paths inside start from. A name wins over a
    folder of that name; write `./emoji` for the folder. `names` is a file with other names for the classes, see
    `read_names`.

    Raises AdaptError when `spec` is none of these, or as its reader does.
    """
    split = _read(os.fspath(spec), root)
    return split if names is None else split.renamed(read_names(names))


def folder_of(spec: _Path) -> str | None:
    """The folder that `spec` stands for, all of whose pictures should be in the data; None for a name or a list."""
    spec = os.fspath(spec)
    if published.find(spec) is not None or bundled.is_bundled(spec):
        return None
    folder = spec.removeprefix(_DOMAINS).removeprefix(_DEFECTS)
    return os.path.abspath(folder) if os.path.isdir(folder) else None


def _read(spec: str, root: _Path | None) -> Split:
    entry = published.find(spec)
    if entry is not None:
        return read_published(entry, _given(root, spec, f"the folder that holds {entry.folder}/"))
    if spec.startswith(_TORCHVISION):
        return read_torchvision(spec.removeprefix(_TORCHVISION), _given(root, spec, "as for torchvision"))
    if os.path.isfile(spec) and spec.endswith(".csv"):
        return read_csv(spec, root)
    if os.path.isfile(spec) and spec.endswith((".json", ".json.gz", ".jsonl")):
        return read_captions_file(spec, root) if is_captions_file(spec) else read_split(spec, root)
    return _read_rootless(spec, root)


def _given(root: _Path | None, spec: str, expected: str) -> _Path:
    if root is None:
        raise AdaptError(f"Data {spec!r} needs a root: {expected}. An image folder of that name is './{spec}'.")
    return root


def _read_rootless(spec: str, root: _Path | None) -> Split:
    """What has its images with it."""
    is_bundled, has_prefix = bundled.is_bundled(spec), spec.startswith((_HUGGING_FACE, _DOMAINS, _DEFECTS))
    is_list = os.path.isfile(spec) and spec.endswith(".txt")
    if not (is_bundled or has_prefix or is_list or os.path.isdir(spec)):
        raise AdaptError(
            f"Data {spec!r} is neither a folder, nor a .csv, .txt, .json(l) or .json.gz file that exists, nor a "
            f"bundled or published set: {nearest(spec, [*bundled.names(), *published.sets()], bundled.LISTED_BY)}."
        )
    if root is not None:
        raise AdaptError(
            f"Data {spec!r} has its images with it: root {os.fspath(root)!r} is for .csv and .json only, and for "
            "published data sets."
        )
    if is_bundled:
        return bundled.read_bundled(spec)
    if spec.startswith(_DOMAINS):
        return read_domain_folders(spec.removeprefix(_DOMAINS))
    if spec.startswith(_DEFECTS):
        return read_defect_folder(spec.removeprefix(_DEFECTS))
    if has_prefix:
        return read_hugging_face(spec.removeprefix(_HUGGING_FACE))
    if is_list:
        return read_list(spec)
    if is_labelled(spec):
        return read_labelled_folder(spec)
    return read_captioned_folder(spec) if is_captioned(spec) else read_folder(spec)
