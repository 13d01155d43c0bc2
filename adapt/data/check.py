"""Do the images decode? Found out in worker processes, before anything is trained on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Generic, Literal, TypeVar, get_args

from adapt.data.decoding.facts import Facts, facts_of
from adapt.data.decoding.images import check_image
from adapt.data.decoding.masks import check_mask
from adapt.data.decoding.regions import check_inside, parted
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.errors import AdaptError, nearest
from adapt.progress import Progress

Broken = Literal["refuse", "skip"]
File = tuple[str, bool]  # its path, and whether it is turned upright by EXIF
Known = TypeVar("Known")

logger = logging.getLogger("adapt")
_BATCH = 32
_FEW = 256  # not worth starting a process for
_WORKERS = 4  # each holds one decoded picture at a time
_NAMED = 3


def broken_images(items: Sequence[Item], progress: Progress | None = None) -> dict[str, str]:
    """Why `adapt.data.open_image` would refuse an image, or a mask, by its path, in the order of `items`.

    `progress` is told how many files are done, and of how many. A file that several items share is looked at once.
    """
    turned = {path: item.turned for item in items for path in item.files}
    problems = _of_each(_problem, list(turned.items()), progress)
    found = {path: problem for path, problem in zip(turned, problems, strict=True) if problem}
    return found | _broken_masks(items, found.keys())


def all_facts(items: Sequence[Item], progress: Progress | None = None) -> dict[str, Facts]:
    """Facts about each file of `items`, masks among them, by its path; `progress` is as of `broken_images`."""
    turned = {parted(path)[0]: item.turned for item in items for path in item.files}
    return dict(zip(turned, _of_each(_facts, list(turned.items()), progress), strict=True))


def unfit(items: Sequence[Item], facts: Mapping[str, Facts]) -> dict[str, str]:
    """Reasons why regions and masks cannot be used whose files can be read, by their paths."""
    found: dict[str, str] = {}
    for item in items:
        for path in item.paths:
            whole, box = parted(path)
            if box is not None and not facts[whole].problem:
                try:
                    check_inside(box, facts[whole].size, path)
                except AdaptError as error:
                    found[path] = str(error)
    unread = {path for path, known in facts.items() if known.problem}
    return found | _broken_masks(items, unread | found.keys())


def _broken_masks(items: Sequence[Item], unread: Set[str]) -> dict[str, str]:
    masked = [item for item in items if item.label.files and unread.isdisjoint(item.files)]
    return {item.label.files[0]: problem for item in masked if (problem := _of_mask(item))}


def _of_mask(item: Item) -> str:
    try:
        check_mask(item, item.turned)
    except AdaptError as error:
        return str(error)
    return ""


def check_root(split: Split) -> None:
    """AdaptError where not a single image is under the root: mostly they start from another folder."""
    items = [item for item in split.items() if item.paths]
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


def _kept(items: tuple[Item, ...], found: Collection[str]) -> tuple[Item, ...]:
    return tuple(item for item in items if not any(path in found for path in item.files))


def _first(found: dict[str, str]) -> str:
    more = f" And {len(found) - _NAMED:,} more." if len(found) > _NAMED else ""
    return " ".join(list(found.values())[:_NAMED]) + more


def _of_each(look: Callable[[File], Known], files: Sequence[File], progress: Progress | None = None) -> Iterator[Known]:
    """Results of `look` for each file, in worker processes where there are many of them."""
    for done, known in enumerate(_looked_at(look, files), 1):
        yield known
        if progress is not None:
            progress(done, len(files))


def _looked_at(look: Callable[[File], Known], files: Sequence[File]) -> Iterator[Known]:
    """Results of `look` one by one; a bounded number is ever in flight."""
    if len(files) < _FEW:
        yield from map(look, files)
        return
    import torch
    from torch.utils.data import DataLoader

    from adapt.data.decoding.decoded import processors

    batches: DataLoader[Known] = DataLoader(
        _Looks(look, files),  # type: ignore[arg-type]  # a map-style dataset by its methods
        batch_size=_BATCH,
        num_workers=min(_WORKERS, processors()),
        collate_fn=list,
        generator=torch.Generator(),  # or else a number would be drawn from the global one
    )
    for batch in batches:
        yield from batch


class _Looks(Generic[Known]):
    """A map-style torch dataset: item `i` is the result for file `i`."""

    def __init__(self, look: Callable[[File], Known], files: Sequence[File]) -> None:
        self._look, self._files = look, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Known:
        return self._look(self._files[index])


def _problem(file: File) -> str:
    """Reason why a file cannot be used, "" for none."""
    path, turned = file
    try:
        check_image(path, turned)
    except AdaptError as error:
        return str(error)
    return ""


def _facts(file: File) -> Facts:
    return facts_of(*file)
