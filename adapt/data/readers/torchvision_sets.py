"""The reader of torchvision's data sets of image files with class names. Nothing is downloaded.

torchvision keeps the files and labels of a data set in attributes that differ from class to class and are often
private. All their names are listed here, and a data set without any of them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError, nearest
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.rows import listed, to_split
from adapt.data.split import Split

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

# The names of its parts, each with our part; none if there is only one list of images.
_PARTS: dict[str, dict[str, str]] = {
    "Country211": {"train": "train", "valid": "val", "test": "test"},
    "DTD": {"train": "train", "val": "val", "test": "test"},
    "EuroSAT": {},
    "FGVCAircraft": {"train": "train", "val": "val", "test": "test"},
    "Flowers102": {"train": "train", "val": "val", "test": "test"},
    "Food101": {"train": "train", "test": "test"},
    "OxfordIIITPet": {"trainval": "train", "test": "test"},
    "RenderedSST2": {"train": "train", "val": "val", "test": "test"},
    "StanfordCars": {"train": "train", "test": "test"},
    "SUN397": {},
}
_FILES, _LABELS, _PAIRS = ("_image_files", "_images"), ("_labels",), ("samples", "_samples")


def names() -> list[str]:
    """Return the names of the data sets that `read_torchvision` can read."""
    return list(_PARTS)


def read_torchvision(
    name: str, root: str | os.PathLike[str], ratios: Sequence[float] = parts.RATIOS, seed: int = 0
) -> Split:
    """Return torchvision's data set `name` as a `Split`; `root` is the folder that torchvision's class calls `root`.

    A data set for which torchvision defines no splits is divided by `ratios` (train, val, test) and `seed`. Files,
    class names and splits are taken from torchvision and differ from those in the papers. For the split of the papers,
    use the published name of the data set, such as `oxford_pets`.

    Raises AdaptError if `name` is unknown, or if torchvision does not find the data set under `root`.
    """
    if name not in _PARTS:
        raise AdaptError(f"torchvision has no data set {name!r} of image files with labels; {nearest(name, _PARTS)}")
    root = os.path.abspath(root)
    divided = [(_open(name, root, split=theirs), part) for theirs, part in _PARTS[name].items()]
    datasets = divided or [(_open(name, root), "")]
    class_names = [str(each) for each in datasets[0][0].classes]
    rows = [
        listed(path, {"label": class_names[label]}, part)
        for dataset, part in datasets
        for path, label in _files(dataset)
    ]
    return to_split(name, root, rows, class_names, ratios, seed, turned=False)


def _open(name: str, root: str, **options: str) -> VisionDataset:
    from torchvision import datasets

    try:
        return getattr(datasets, name)(root, **options)
    except (RuntimeError, OSError) as error:
        raise AdaptError(
            f"torchvision finds no {name} in {root!r}: {error}. Put the data set where torchvision's documentation "
            f"says, for example with `torchvision.datasets.{name}({root!r}, download=True)`"
        ) from error


def _files(dataset: VisionDataset) -> list[tuple[str, int]]:
    """Return the (image path, label) pairs of a torchvision data set, in the order of the data set."""
    held = vars(dataset)
    pairs = next((held[key] for key in _PAIRS if key in held), None)
    if pairs is None:
        columns = [next((held[key] for key in keys if key in held), None) for keys in (_FILES, _LABELS)]
        if None in columns:
            raise AdaptError(
                f"this version of torchvision stores the file names of {type(dataset).__name__} in attributes that "
                "adapt does not know. List the images in a .csv file instead"
            )
        pairs = zip(*columns, strict=True)
    return [(os.fspath(path), int(label)) for path, label in pairs]


class TorchvisionSets(Reader):
    name = "torchvision_sets"
    takes = "torchvision:NAME"
    reads = staticmethod(read_torchvision)
    prefix = "torchvision:"
    root = "needed"
    root_is = "as for torchvision"
