"""Do the images decode? Found out in worker processes, before anything is trained on them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

from adapt.data.decoding.content import read_bytes
from adapt.data.decoding.images import check_image
from adapt.data.decoding.masks import check_mask
from adapt.data.decoding.regions import parted
from adapt.data.split import Item, Split
from adapt.errors import AdaptError, nearest
from adapt.progress import Progress
from adapt.shown import first_of

Broken = Literal["refuse", "skip"]

logger = logging.getLogger("adapt")
_BATCH = 32
_FEW = 256  # not worth starting a process for
_WORKERS = 4  # each holds one decoded picture at a time
_NAMED = 3


def broken_images(items: Sequence[Item], progress: Progress | None = None) -> dict[str, str]:
    """Why `adapt.data.open_image` would refuse an image, or a mask, by its path, in the order of `items`.

    `progress` is told how many files are done, and of how many. A file that several items share is looked at once.
    """
    paths = list(dict.fromkeys(path for item in items for path in (item.path, item.mask) if path))
    found: dict[str, str] = {}
    for done, (path, problem) in enumerate(zip(paths, _problems(paths), strict=True), 1):
        if problem:
            found[path] = problem
        if progress is not None:
            progress(done, len(paths))
    for item in items:
        if item.mask and not found.keys() & {item.path, item.mask}:
            found |= _of_mask(item)
    return found


def _of_mask(item: Item) -> dict[str, str]:
    try:
        check_mask(item)
    except AdaptError as error:
        return {item.mask: str(error)}
    return {}


def check_root(split: Split) -> None:
    """AdaptError where not a single image is under the root: mostly they start from another folder."""
    items = [item for item in split.items() if item.path]
    if not (split.root and items) or any(map(_may_be_there, items)):
        return
    raise AdaptError(
        f"none of the {len(items):,} images of data {split.name!r} is there, such as {items[0].path!r}. Their paths "
        f"start from the root {split.root!r}: give the folder that they do start from (--root, data.root in a recipe)"
    )


def _may_be_there(item: Item) -> bool:
    path, _ = parted(item.path)
    return "!" in path or os.path.lexists(path)  # what is inside archives, or drawn, has its own messages


def without_broken(split: Split, broken: Broken, progress: Progress | None = None) -> Split:
    """`split` with images that all decode: itself, or where `broken` is "skip" what is left of it, which is logged.

    Raises AdaptError, with their number, where images do not decode and `broken` is "refuse"; where a class has no
    training image left; and where none of the images is there.
    """
    if broken not in get_args(Broken):
        raise AdaptError(f"broken is {broken!r}; {nearest(broken, get_args(Broken))}")
    check_root(split)
    items = list(split.items())
    found = broken_images(items, progress)
    if not found:
        return split
    lost = sum(len(part) - len(_kept(part, found)) for part in (split.train, split.val, split.test))
    count = f"{lost:,} of {len(items):,} images of data {split.name!r}"
    if broken == "refuse":
        raise AdaptError(
            f"{count} cannot be used. {_first(found)} "
            "`adapt data check` lists them all; data.broken=skip leaves them out."
        )
    logger.warning("left out %s. %s", count, _first(found))
    train, val, test = (_kept(part, found) for part in (split.train, split.val, split.test))
    return replace(split, train=train, val=val, test=test)


def remarks(split: Split) -> list[str]:
    """What is worth knowing of images that can all be used: classes with a single one, and copies across parts."""
    counts = Counter(label for item in split.train for label in item.every_label)
    single = [name for label, name in enumerate(split.class_names) if counts[label] == 1]
    found = [f"one training image each, too few to hold any back: {first_of(single)}"] if single else []
    known = {_digest(item): item.name for item in split.train}
    for part, items in (("val", split.val), ("test", split.test)):
        copies = [f"{item.name} ({known[digest]})" for item in items if (digest := _digest(item)) in known]
        if copies:
            found.append(f"{part} images that are training images, byte for byte: {first_of(copies)}")
    return found


def _digest(item: Item) -> bytes:
    content = read_bytes(item.path) if item.path else item.text.encode(errors="surrogateescape")
    return hashlib.blake2b(content, digest_size=16).digest()


def _kept(items: tuple[Item, ...], found: Collection[str]) -> tuple[Item, ...]:
    return tuple(item for item in items if item.path not in found and item.mask not in found)


def _first(found: dict[str, str]) -> str:
    more = f" And {len(found) - _NAMED:,} more." if len(found) > _NAMED else ""
    return " ".join(list(found.values())[:_NAMED]) + more


def _problems(paths: list[str]) -> Iterator[str]:
    """What is wrong with each file, "" for nothing; a bounded number of results is ever in flight."""
    if len(paths) < _FEW:
        yield from map(_problem, paths)
        return
    import torch
    from torch.utils.data import DataLoader

    from adapt.data.decoding.decoded import processors

    batches: DataLoader[str] = DataLoader(
        _Problems(paths),  # type: ignore[arg-type]  # a map-style dataset by its methods
        batch_size=_BATCH,
        num_workers=min(_WORKERS, processors()),
        collate_fn=list,
        generator=torch.Generator(),  # or else a number would be drawn from the global one
    )
    for batch in batches:
        yield from batch


class _Problems:
    """A map-style torch dataset: item `i` is what is wrong with file `i`."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> str:
        return _problem(self._paths[index])


def _problem(path: str) -> str:
    try:
        check_image(path)
    except AdaptError as error:
        return str(error)
    return ""
