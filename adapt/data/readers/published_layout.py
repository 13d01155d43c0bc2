"""The reader of the published data sets: most have an image folder and a split file; Aircraft and ImageNet differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.data.item import Item
from adapt.data.readers import imagenet
from adapt.data.readers.base import Reader
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
        absent = " and no ".join(missing)
        raise AdaptError(f"data {data.name!r}: there is no {absent}.{_hint(data, root)} {data.advice}")
    home = Path(root, data.folder)
    split = _READERS[data.layout](data, home)
    if len(split.class_names) != data.classes:
        raise AdaptError(
            f"data {data.name!r} has {len(split.class_names)} classes in {str(home)!r}; expected {data.classes}, as "
            f"published. {data.advice}"
        )
    return replace(split, name=data.name, template=data.template)


def _hint(data: Published, root: str) -> str:
    """Return a hint to give the parent folder, if `root` is the data set's own folder, and otherwise an empty text."""
    own = os.path.basename(root) == data.folder and os.path.isdir(root)
    return f" Give the folder that holds {data.folder}/ as root, not that folder itself." if own else ""


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


_READERS: dict[str, Callable[[Published, Path], Split]] = {
    "split": _by_split_file,
    "variants": _by_variants,
    "synsets": imagenet.by_synsets,
    "numbers": imagenet.by_numbers,
}


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
