"""Checks that all images of a data set can be decoded, in worker processes, and facts about them."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Literal, NamedTuple, ParamSpec, TypeVar, get_args

from adapt.common.errors import AdaptError, nearest
from adapt.common.interrupt import end_with_the_parent
from adapt.common.progress import Progress, counted
from adapt.data.decoding.files import check_inside, open_file, parted
from adapt.data.decoding.images import check_image
from adapt.data.decoding.masks import blank_masks, check_masks, marks_none
from adapt.data.decoding.pictures import LackingError, opened, orientation, size_of, to_rgb
from adapt.data.item import Item
from adapt.data.split import Split

logger = logging.getLogger("adapt")


class Facts(NamedTuple):
    """Facts about one image file; a file with a `problem` is unusable, and has no other facts but perhaps `lacks`."""

    problem: str = ""
    lacks: str = ""
    """The library to install before the file can be read, with the command."""
    format: str = ""
    mode: str = ""
    wide: bool = False
    """Whether its channels have 16 bits."""
    size: tuple[int, int] = (0, 0)
    """Width and height, upright if it is turned."""
    frames: int = 1
    held: int = 1
    """Its EXIF orientation."""
    digest: bytes = b""
    """A hash of its pixels, or of a JPEG's bytes, equal for copies."""


def facts_of(path: str, turned: bool) -> Facts:
    """Decode the image file at `path` and return facts about the file, such as its format and size.

    A JPEG is decoded at an eighth of its size, which is faster but still reads all of its data.
    """
    try:
        with warnings.catch_warnings(), open_file(path) as file, opened(file, path) as picture:
            warnings.simplefilter("ignore")  # Pillow's, about pictures that it can decode
            size = size_of(picture, turned)
            tiles = getattr(picture, "tile", ())  # as long as it is not decoded
            wide = picture.mode.startswith("I") or any(";16" in str(tile) for tile in tiles)
            frames = 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
            picture.draft(None, (1, 1))
            picture.load()
            held, mode = orientation(picture), picture.mode
            form = "JPEG" if picture.format == "MPO" else str(picture.format)  # a JPEG followed by another
            if form == "JPEG":
                file.seek(0)
            content = file.read() if form == "JPEG" else to_rgb(picture, turned).tobytes()
    except AdaptError as error:
        return Facts(str(error), str(error.__cause__) if isinstance(error.__cause__, LackingError) else "")
    digest = hashlib.blake2b(repr(size).encode() + content, digest_size=16).digest()
    return Facts("", "", form, mode, wide, size, frames, held, digest)


Broken = Literal["refuse", "skip"]
Known = TypeVar("Known")
P = ParamSpec("P")

_BATCH = 32
_FEW = 256  # fewer files are not worth starting a process
_WORKERS = 4  # each holds one decoded picture at a time
_NAMED = 3


def broken_images(items: Sequence[Item], progress: Progress | None = None) -> dict[str, str]:
    """Return {path: reason} for the images and masks of `items` that cannot be used: first images, then masks.

    A reason is the error message that opening the file gives. `progress` is called with the number of checked files and
    the total number of files. A file that several items share is checked once.
    """
    turned = {path: item.turned for item in items for path in item.files}
    problems = _of_each(partial(_refusal, check_image), turned, progress)  # type: ignore[call-arg]
    broken = {path: problem for path, problem in zip(turned, problems, strict=True) if problem}
    return broken | _broken_masks(items, broken.keys())


def all_facts(items: Sequence[Item], progress: Progress | None = None) -> dict[str, Facts]:
    """Return {path: facts} for every file of `items`, including masks; facts are, for example, the format and the size.

    `progress` is called with the number of checked files and the total number of files.
    """
    turned = {parted(path)[0]: item.turned for item in items for path in item.files}
    return dict(zip(turned, _of_each(facts_of, turned, progress), strict=True))


def unfit(items: Sequence[Item], facts: Mapping[str, Facts]) -> dict[str, str]:
    """Return {path: reason} for the regions and masks that do not fit their images; unreadable files are ignored."""
    problems: dict[str, str] = {}
    for item in items:
        for path in item.paths:
            file, box = parted(path)
            if box is None or facts[file].problem:
                continue
            if problem := _refusal(check_inside, box, facts[file].size, path):
                problems[path] = problem
    unread = {path for path, known in facts.items() if known.problem}
    return problems | _broken_masks(items, unread | problems.keys())


def _broken_masks(items: Sequence[Item], unread: Set[str]) -> dict[str, str]:
    masked = [item for item in items if item.label.files and unread.isdisjoint(item.files)]
    unfit = {item.label.files[0]: problem for item in masked if (problem := _refusal(check_masks, [item], item.turned))}
    masks = {path: item.turned for item in items for path in item.label.files if path not in unread | unfit.keys()}
    return unfit | blank_masks(items, dict(zip(masks, _of_each(marks_none, masks), strict=True)))


def check_root(split: Split) -> None:
    """Raise AdaptError if none of the images of `split` exists, usually because the root folder is wrong."""
    items = [item for item in split.items() if item.paths]
    paths = (parted(item.path)[0] for item in items)
    # members of archives and drawings have messages of their own
    if not (split.root and items) or any("!" in path or os.path.lexists(path) for path in paths):
        return
    raise AdaptError(
        f"none of the {len(items):,} images of data {split.name!r} exists, such as {items[0].path!r}. Image paths are "
        f"relative to the root {split.root!r}: give the right root folder (--root, or data.root in a recipe)"
    )


def without_broken(split: Split, broken: Broken, progress: Progress | None = None) -> Split:
    """Return `split`; if `broken` is "skip", images that cannot be decoded are removed and logged.

    Raises AdaptError if an image cannot be decoded and `broken` is "refuse", if a class is left without a training
    image, or if none of the images exists.
    """
    if broken not in get_args(Broken):
        raise AdaptError(f"the setting broken is {broken!r}; {nearest(broken, get_args(Broken))}")
    check_root(split)
    items = [*split.items(), *split.unlabelled]
    problems = broken_images(items, progress)
    if not problems:
        return split
    lost = sum(not problems.keys().isdisjoint(item.files) for item in items)
    count = f"{lost:,} of {len(items):,} {split.noun} of data {split.name!r}"
    more = f"; and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
    named = "; ".join(list(problems.values())[:_NAMED]) + more
    if broken == "refuse":
        raise AdaptError(
            f"{count} cannot be used: {named}. List all problems with `adapt data check` and remove the "
            "files, or leave them out of a training with data.broken=skip"
        )
    logger.warning("left out %s: %s", count, named)
    return split.mapped(lambda items: (item for item in items if problems.keys().isdisjoint(item.files)))


def copies_of(known: Sequence[Item], items: Sequence[Item], facts: Mapping[str, Facts]) -> list[Item]:
    """Return those of `items` that are copies of `known` images, by the facts about all their files."""
    digests = {facts[parted(path)[0]].digest for item in known for path in item.paths}
    return [item for item in items if facts[parted(item.path)[0]].digest in digests]


def without_copies(
    unlabelled: Sequence[Item], labelled: Sequence[Item], progress: Progress | None = None
) -> tuple[Item, ...]:
    """Return the `unlabelled` images without copies of `labelled` images, of the test part above all.

    Copies have the same pixels, or the same bytes if they are JPEGs. A warning says how many there are.
    """
    if not (unlabelled and labelled):
        return tuple(unlabelled)
    copies = copies_of(labelled, unlabelled, all_facts([*unlabelled, *labelled], progress))
    if copies:
        logger.warning(
            "left out %d of %d unlabelled images, such as %r, which are copies of images with a label",
            len(copies), len(unlabelled), copies[0].path,
        )  # fmt: skip
    left_out = set(copies)
    return tuple(item for item in unlabelled if item not in left_out)


def _of_each(
    look: Callable[[str, bool], Known], turned: Mapping[str, bool], progress: Progress | None = None
) -> Iterator[Known]:
    """Yield `look(path, flag)` for each path and flag in `turned`, computed in worker processes if there are many."""
    if len(turned) < _FEW:
        yield from counted(map(look, turned, turned.values()), len(turned), progress)
        return
    from adapt.data.decoding.decoded import processors

    with ProcessPoolExecutor(min(_WORKERS, processors()), initializer=end_with_the_parent) as workers:
        yield from counted(workers.map(look, turned, turned.values(), chunksize=_BATCH), len(turned), progress)


def _refusal(check: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> str:
    """Call `check` and return the message of the AdaptError that `check` raises, or "" if `check` succeeds."""
    try:
        check(*args, **kwargs)
    except AdaptError as error:
        return str(error)
    return ""
