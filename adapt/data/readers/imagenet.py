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

from adapt.data.item import Item
from adapt.data.readers.folder import images_in, subfolders
from adapt.data.readers.lines import read_lines
from adapt.data.readers.published import Published
from adapt.data.split import Split
from adapt.errors import AdaptError
from adapt.shown import first_of


def by_synsets(data: Published, home: Path) -> Split:
    """Return the data in class folders named by WordNet ids: all 1,000 (ImageNet, -Sketch) or 200 of them (-A, -R)."""
    names = _class_names(home / data.lists[0])
    synsets = subfolders(home / data.images[0])
    for synset in synsets:
        if synset not in names:
            raise AdaptError(f"data {data.name!r}: {synset} in {data.images[0]}/ is no class of {data.lists[0]}")
    return _split(data, home, synsets, [names[synset] for synset in synsets])


def by_numbers(data: Published, home: Path) -> Split:
    """Return the data in class folders named by class number, from 0 (ImageNetV2)."""
    names = list(_class_names(home / data.lists[0]).values())
    return _split(data, home, [str(label) for label in range(len(names))], names)


def _class_names(path: Path) -> dict[str, str]:
    """Return the class names by WordNet id, made unique by a `_` at the end."""
    names: dict[str, str] = {}
    for line in read_lines(path):
        synset, _, name = line.partition(" ")
        while name in names.values():
            name += "_"
        names[synset] = name
    return names


def _split(data: Published, home: Path, folders: Sequence[str], names: Sequence[str]) -> Split:
    """Return the data in class folders; folder `i` of `folders` holds class `i`, which is called `names[i]`.

    Of two image folders, the first is train and the second is test; a single one is test.
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
                f"data {data.name!r}: {str(images)!r} {problem} the class folders {listed}. Expected {len(expected)}, "
                f"each with the images of its class. {data.advice}"
            )


def _items(images: Path, folders: Sequence[str], names: Sequence[str]) -> tuple[Item, ...]:
    return tuple(
        Item.of(path=path, label=name)
        for name, folder in zip(names, folders, strict=True)
        for path in images_in(str(images / folder))
    )
