"""The reader of the published data sets: most have an image folder and a split file; Aircraft and ImageNet differ.

The class folders of ImageNet and its four variants are named by WordNet ids or by numbers. The readable names come from
CoOp's `classnames.txt`, a line `WORDNET_ID NAME` for each of the 1,000 classes in the order of their ids. Two names
stand for two classes each ("missile", "sunglasses"), but names must identify classes. The second class gets a `_` at
the end of its name. Prompts read it as a space, which CLIP's tokenizer drops, so that both classes keep the published
prompt, and with it the published accuracies.

CoOp takes the images of a class in the order of the file system; here they are sorted, so that a seed picks the same
images everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.common.shown import first_of
from adapt.data.item import Item
from adapt.data.readers.base import Reader
from adapt.data.readers.folder import images_in, subfolders
from adapt.data.readers.lines import read_lines
from adapt.data.readers.published import Published, find, sets
from adapt.data.split import Split


def read_published(data: Published, root: str | os.PathLike[str]) -> Split:
    """Return a published data set, read from its folder under `root` (the directory that CoOp calls `$DATA`).

    Raises AdaptError if a folder or list file is missing (the message says what to download), or if the number of
    classes differs from the published number. Images are neither opened nor counted, unlike in `adapt data check`.
    """
    root = os.path.abspath(root)
    missing = data.missing(root)
    if missing:
        absent, hint = " and no ".join(missing), ""
        if os.path.basename(root) == data.folder and os.path.isdir(root):  # the data set's own
            hint = f" Give the folder that holds {data.folder}/ as root, not that folder itself."
        raise AdaptError(f"data {data.name!r}: there is no {absent}.{hint} {data.advice}")
    home = Path(root, data.folder)
    read = {"split": _by_split_file, "variants": _by_variants}.get(data.layout, _by_synsets)
    split = read(data, home)
    if len(split.class_names) != data.classes:
        raise AdaptError(
            f"data {data.name!r} has {len(split.class_names)} classes in {str(home)!r}; expected {data.classes}, as "
            f"published. {data.advice}"
        )
    return replace(split, name=data.name, template=data.template)


def _by_split_file(data: Published, home: Path) -> Split:
    """Read CoOp's split file, whose paths are relative to the image folder, or to `home` for several image folders."""
    from adapt.data.readers.split_file import read_split

    (source,) = data.lists
    return read_split(home / source, home / data.images[0] if len(data.images) == 1 else home, turned=False)


def _by_variants(data: Published, home: Path) -> Split:
    """Read FGVCAircraft: `variants.txt` lists the classes in order, the other lists have lines `IMAGE VARIANT`."""
    variants, *parts = (read_lines(home / name) for name in data.lists)
    images = home / data.images[0]

    def part(lines: list[str], source: str) -> tuple[Item, ...]:
        items = []
        for line in lines:
            image, _, name = line.partition(" ")
            if name not in variants:
                raise AdaptError(
                    f"{str(home / source)!r} has the line {line!r}; expected an image and a variant from variants.txt"
                )
            items.append(Item.of(path=str(images / f"{image}.jpg"), label=name))
        return tuple(items)

    train, val, test = map(part, parts, data.lists[1:])
    return Split(data.name, tuple(variants), train, val, test, root=str(images))


def _by_synsets(data: Published, home: Path) -> Split:
    """Return ImageNet, -Sketch, -A or -R from class folders named by WordNet ids, or V2 from numbers, from 0 on."""
    names = _class_names(home / data.lists[0])
    if data.layout == "numbers":
        return _by_folders(data, home, [str(label) for label in range(len(names))], list(names.values()))
    synsets = subfolders(home / data.images[0])
    for synset in synsets:
        if synset not in names:
            raise AdaptError(
                f"data {data.name!r}: the folder {synset} in {data.images[0]}/ is not a class in {data.lists[0]}. "
                "Remove the folder"
            )
    return _by_folders(data, home, synsets, [names[synset] for synset in synsets])


def _class_names(path: Path) -> dict[str, str]:
    """Return {WordNet id: class name}, where repeated class names are made unique by appending `_`."""
    names: dict[str, str] = {}
    for line in read_lines(path):
        synset, _, name = line.partition(" ")
        while name in names.values():
            name += "_"
        names[synset] = name
    return names


def _by_folders(data: Published, home: Path, folders: Sequence[str], names: Sequence[str]) -> Split:
    """Return the data set in class folders, where the folder `folders[i]` contains class `i`, named `names[i]`.

    If the data set has two image folders, the first is train and the second is test. A single image folder is test.
    """
    parts: list[tuple[Item, ...]] = []
    for images in (home / each for each in data.images):
        wanted, present = set(folders), set(subfolders(images))
        for problem, wrong in (("lacks", wanted - present), ("should not have", present - wanted)):
            if wrong:
                listed = first_of(sorted(wrong))
                raise AdaptError(
                    f"data {data.name!r}: {str(images)!r} {problem} the class folders {listed}. Expected "
                    f"{len(folders)} folders, each with the images of one class. {data.advice}"
                )
        of_classes = {name: images_in(str(images / folder)) for name, folder in zip(names, folders, strict=True)}
        parts.append(tuple(Item.of(path=path, label=name) for name, paths in of_classes.items() for path in paths))
    train = parts[0] if len(parts) == 2 else ()
    return Split(data.name, tuple(names), train, (), parts[-1], root=str(home))


class PublishedLayout(Reader):
    name = "published_layout"
    takes = "a published name"
    root = "needed"
    root_is = "the folder that holds the published sets' own folders"

    def claims(self, spec: str) -> bool:
        return find(spec) is not None

    def read(self, spec: str, root: str | None) -> Split:
        data = find(spec)
        assert data is not None  # it claims no other
        return read_published(data, root or "")

    def specs(self) -> Sequence[str]:
        return list(sets())
