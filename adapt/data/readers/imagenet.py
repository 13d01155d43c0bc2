"""Readers of ImageNet and its four variants, whose class folders are named by WordNet ids or by numbers.

The readable names come from CoOp's `classnames.txt`, a line `WORDNET_ID NAME` for each of the 1,000 classes in the
order of their ids. Two names stand for two classes each ("missile", "sunglasses"), but names must identify classes. The
second class gets a `_` at the end of its name. Prompts read it as a space, which CLIP's tokenizer drops, so that both
classes keep the published prompt, and with it the published accuracies.

CoOp takes the images of a class in the order of the file system; here they are sorted, so that a seed picks the same
images everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.common.shown import first_of
from adapt.data.item import Item
from adapt.data.readers.folder import images_in, subfolders
from adapt.data.readers.lines import read_lines
from adapt.data.readers.published import Published
from adapt.data.split import Split


def by_synsets(data: Published, home: Path) -> Split:
    """Return ImageNet, -Sketch (1,000 classes), -A or -R (200 classes), from class folders named by WordNet ids."""
    names = _class_names(home / data.lists[0])
    synsets = subfolders(home / data.images[0])
    for synset in synsets:
        if synset not in names:
            raise AdaptError(
                f"data {data.name!r}: the folder {synset} in {data.images[0]}/ is not a class in {data.lists[0]}. "
                "Remove the folder"
            )
    return _split(data, home, synsets, [names[synset] for synset in synsets])


def by_numbers(data: Published, home: Path) -> Split:
    """Return ImageNetV2, read from class folders that are named by class numbers, starting from 0."""
    names = list(_class_names(home / data.lists[0]).values())
    return _split(data, home, [str(label) for label in range(len(names))], names)


def _class_names(path: Path) -> dict[str, str]:
    """Return {WordNet id: class name}, where repeated class names are made unique by appending `_`."""
    names: dict[str, str] = {}
    for line in read_lines(path):
        synset, _, name = line.partition(" ")
        while name in names.values():
            name += "_"
        names[synset] = name
    return names


def _split(data: Published, home: Path, folders: Sequence[str], names: Sequence[str]) -> Split:
    """Return the data set in class folders, where the folder `folders[i]` contains class `i`, named `names[i]`.

    If the data set has two image folders, the first is train and the second is test. A single image folder is test.
    """
    parts = []
    for images in data.images:
        _check_folders(data, home / images, folders)
        parts.append(_items(home / images, folders, names))
    train = parts[0] if len(parts) == 2 else ()
    return Split(data.name, tuple(names), train, (), parts[-1], root=str(home))


def _check_folders(data: Published, images: Path, expected: Sequence[str]) -> None:
    wanted, present = set(expected), set(subfolders(images))
    for problem, folders in (("lacks", wanted - present), ("should not have", present - wanted)):
        if folders:
            listed = first_of(sorted(folders))
            raise AdaptError(
                f"data {data.name!r}: {str(images)!r} {problem} the class folders {listed}. Expected {len(expected)} "
                f"folders, each with the images of one class. {data.advice}"
            )


def _items(images: Path, folders: Sequence[str], names: Sequence[str]) -> tuple[Item, ...]:
    return tuple(
        Item.of(path=path, label=name)
        for name, folder in zip(names, folders, strict=True)
        for path in images_in(str(images / folder))
    )
