"""A data set, divided into train, validation and test items, with few-shot and base/new subsets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from adapt import tasks
from adapt.data.consistency import check_consistent
from adapt.data.few_shot import Sampling, carve, pick
from adapt.data.item import Item
from adapt.errors import AdaptError
from adapt.shown import first_of
from adapt.tasks import Task


@dataclass(frozen=True)
class Split:
    """The train, validation and test items of one data set; class `i` is called `class_names[i]`.

    Data of a task without classes, such as pairs of images and texts, has no class names.

    `root` is the folder that the paths have in common; it is not part of the fingerprint. `ratios` are the shares of
    train, val and test by which a reader divided the data; None if the data came divided. A split without any training
    item is for evaluation only. In any other split, every class must have a training item, unless the task can do
    without.

    Raises AdaptError if a class has no training item, if an item's class has no name, if a part (train, val, test) has
    labels of two tasks, or both images and texts, if texts are to be tested, and for what the task refuses.
    """

    name: str
    class_names: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    template: str = "a photo of a {}."
    root: str = ""
    ratios: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_consistent(self)

    def few_shot(self, shots: int, seed: int, sampling: Sampling = "coop") -> Split:
        """Return `shots` training and min(shots, 4) validation images of each class, with all test images.

        An image of several classes counts only for one of them, usually the rarest, so some classes get more images, or
        fewer. The images and their order are the same as in the published code: CoOp's, or with `sampling="clip-lora"`
        CLIP-LoRA's (see `adapt.data.few_shot`). The global random state is not touched.

        Raises AdaptError if there is nothing to sample.
        """
        if shots < 1:
            raise AdaptError(f"shots is {shots}; expected at least 1 image per class")
        if not self.train:
            raise AdaptError(f"data {self.name!r} has no training images to take {shots} shots from")
        self.check_classes()
        train, val = pick(self.train, self.val, shots, seed, sampling)
        return replace(self, train=train, val=val)

    def check_classes(self) -> None:
        """Raise AdaptError if the data has no classes, as pairs of images and texts have none."""
        if not self.class_names:
            raise AdaptError(f"data {self.name!r} are {self.task.items_are}, which have no classes")

    def with_validation(self, seed: int) -> Split:
        """Return a split with a fifth of each class's training images moved to validation, drawn by `seed`.

        Groups are moved as a whole; a class whose images are all in one group keeps them. Raises AdaptError if there
        are validation images already.
        """
        if self.val:
            raise AdaptError(f"data {self.name!r} has validation images already")
        held = carve(self.train, seed)
        train, val = ([item for item in self.train if (item in held) is held_out] for held_out in (False, True))
        return replace(self, train=tuple(train), val=tuple(val))

    def only(self, classes: str) -> Split:
        """Return a split of only some classes, renumbered from 0: "all", "base" or "new" (CoOp), or a share like "2/3".

        A share such as 2/3 is the second of three runs of consecutive classes; if their lengths cannot be equal, the
        first runs have one class more. Base is 1/2 and new 2/2. To get the published images, take the few-shot sample
        first: its images are drawn over all classes.
        """
        if classes == "all":
            return self
        self.check_classes()
        if not self.task.divisible:
            raise AdaptError(f"data {self.name!r} has {self.task.title}: it cannot be divided by classes ({classes})")
        number, parts = map(int, {"base": "1/2", "new": "2/2"}.get(classes, classes).split("/"))
        size, longer = divmod(len(self.class_names), parts)
        starts = [place * size + min(place, longer) for place in range(parts + 1)]
        chosen = range(starts[number - 1], starts[number]) if number <= parts else range(0)
        if not chosen:
            count = f"{len(self.class_names)} class" + "es" * (len(self.class_names) > 1)
            raise AdaptError(f"data {self.name!r} has {count}; the share {classes!r} of them is empty: take another")

        names = self.class_names[chosen.start : chosen.stop]
        own = set(names)
        return self._mapped(lambda items: (item for item in items if own.issuperset(item.class_names)), names)

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the items' domains, sorted; empty if no item names one."""
        return tuple(sorted({item.domain for item in self.items()} - {""}))

    def leaving_out(self, domain: str) -> Split:
        """Return the split for domain generalisation that tests on `domain` and trains on all other domains.

        Data without any test images is tested with all images of the domain. Raises AdaptError, listing the domains,
        for an unknown domain. Also raises AdaptError if the domain has no test images, or the other domains lack a
        training image of some class.
        """
        if domain not in self.domains:
            listed = ", ".join(map(repr, self.domains)) or "none"
            raise AdaptError(f"data {self.name!r} has no domain {domain!r} to leave out; it has {listed}")
        test = tuple(item for item in self.test or self.items() if item.domain == domain)
        if not test:
            raise AdaptError(f"data {self.name!r} has no test images of the domain {domain!r} to leave out: add some")
        train, val = (tuple(item for item in part if item.domain != domain) for part in (self.train, self.val))
        return replace(self, train=train, val=val, test=test)

    def renamed(self, names: Mapping[str, str]) -> Split:
        """Return the split with its classes renamed by `names`; names of other classes are ignored.

        Raises AdaptError for a class without a new name, and if two classes get the same name.
        """
        missing = [name for name in self.class_names if name not in names]
        if missing:
            named = first_of([*map(repr, missing)])
            raise AdaptError(f"data {self.name!r}: no name is given for {named}. Give one for every class")

        class_names = tuple(names[name] for name in self.class_names)
        return self._mapped(lambda items: (item.renamed(names) for item in items), class_names)

    @property
    def turned(self) -> bool:
        """Whether the images are turned upright by their EXIF orientation."""
        return are_turned(self.items())

    def turning(self, turned: bool) -> Split:
        """Return the split with images turned upright by EXIF (`turned`), or taken as they are stored."""

        return self._mapped(lambda items: (replace(item, turned=turned and bool(item.paths)) for item in items))

    def _mapped(
        self, change: Callable[[tuple[Item, ...]], Iterable[Item]], class_names: tuple[str, ...] | None = None
    ) -> Split:
        """Return the split with the items of each part changed by `change`, and with `class_names` if given."""
        train, val, test = (tuple(change(part)) for part in (self.train, self.val, self.test))
        names = self.class_names if class_names is None else class_names
        return replace(self, class_names=names, train=train, val=val, test=test)

    @property
    def fingerprint(self) -> str:
        """A hash, 16 hex digits, of the files (relative to `root`) and labels of all parts, in order."""
        digest = hashlib.sha256()
        numbers = {name: number for number, name in enumerate(self.class_names)}
        for part, items in (("train", self.train), ("val", self.val), ("test", self.test)):
            for item in items:
                relative = item.path.removeprefix(self.root).replace(os.sep, "/").lstrip("/")
                known = item.identity(relative, self.root), [numbers[name] for name in item.class_names]
                digest.update(f"{part}\0{json.dumps(known)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    @property
    def task(self) -> Task:
        """The task of the training items, or of validation or test items if there are none."""
        return tasks.of(self.train or self.val or self.test)

    @property
    def kind(self) -> str:
        """A description of the items, such as "images of 10 classes"."""
        return f"images of {len(self.class_names):,} classes" if self.class_names else self.task.items_are

    def items(self) -> Iterator[Item]:
        """Yield all items: first train, then val, then test."""
        return chain(self.train, self.val, self.test)


def are_turned(items: Iterable[Item]) -> bool:
    """Return whether the images of a data set are turned upright by EXIF; either all of them are, or none."""
    return any(item.turned for item in items)


def items_id(items: Sequence[Item]) -> str:
    """Return a hash, 16 hex digits, of items by file name and label, in this order; folders do not matter.

    Classes count by their numbers in the order in which they first occur, not by name.
    """
    digest, numbers = hashlib.sha256(), dict[str, int]()
    for item in items:
        own = [numbers.setdefault(name, len(numbers)) for name in item.class_names]
        known = item.identity(item.path.rsplit("/", 1)[-1], os.path.dirname(item.path)), own
        digest.update(f"{json.dumps(known)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
