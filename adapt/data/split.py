"""A data set as lists of labelled files, few of them or all, of all classes or of one half."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from adapt.data.consistency import check_consistent
from adapt.data.few_shot import Sampling, carve, pick
from adapt.errors import AdaptError
from adapt.shown import first_of

SEPARATOR = "|"  # of the names of several classes, where they are written as one text


@dataclass(frozen=True)
class Item:
    """One labelled image. `path` is of `adapt.data.decoding.files`'s forms; `domain` is "" where there are none.

    With a `question` about the image, the class name is the answer, and the label the answer's number. Images of one
    `group`, such as one object's photographs, are more alike than others of their class; "" where none is named.
    Where `path` is "", a `text` stands in the image's place: a model may learn from its features. An image with a text
    is a pair of both: it has no class, and its label is the number of the image, which may have several texts;
    `rephrased` says the same as the text in other words, and pairs of one `entity`, such as one product, belong
    together: their label is its number. A text may stand alone too, without a class. A `target` is a
    number, such as a grade, whose class is a word for it. `mask` is the path of a picture of the same size that is
    bright where the image is not as it should be; "" where none of it is. The `overlap` of a region with its object's
    box is their intersection over their union, from 0 to 1.

    Where an image may have several classes, `labels` are the numbers of all of them, perhaps of none. Its label and
    class name are those of the one by which it is drawn and divided, such as the rarest; -1 and "" where it has none.

    `turned` says how it is to be learned from: upright by its EXIF orientation, as people's own photographs are, or as
    it is stored. A model that has learned keeps to what it learned from.
    """

    path: str
    label: int
    class_name: str
    domain: str = ""
    question: str = ""
    group: str = ""
    text: str = ""
    target: float | None = None
    labels: tuple[int, ...] | None = None
    mask: str = ""
    rephrased: str = ""
    entity: str = ""
    overlap: float | None = None
    turned: bool = field(default=False, compare=False)

    @property
    def number(self) -> float | None:
        """What batches have beside its label: its target or its overlap."""
        return self.overlap if self.target is None else self.target

    @property
    def every_label(self) -> tuple[int, ...]:
        """The numbers of all its classes."""
        return (self.label,) if self.labels is None else self.labels

    @property
    def image_alone(self) -> Item:
        """The same without what is said of the image, which its features do not depend on."""
        return replace(self, question="", text="", labels=None)

    @property
    def kept_with(self) -> str:
        """What its entity or group is called, an image without one being by itself; the same in all classes."""
        return self.entity or self.group or self.name

    @property
    def name(self) -> str:
        """What it is called in lists and messages."""
        return self.path or self.text

    @property
    def is_pair(self) -> bool:
        """Whether it is an image with its text."""
        return bool(self.path and self.text)


@dataclass(frozen=True)
class Split:
    """Train, validation and test images of one data set; label `i` is the class `class_names[i]`.

    Pairs of images and texts have no classes, and so no class names; nor have texts alone, which pairs may go with.

    `root` is what the paths have in common; it does not enter the fingerprint. `ratios` are the shares of train, val
    and test by which a reader divided data that came without parts; None where it came with them. A split without any
    training image is for evaluation only; otherwise every class must have one.

    Raises AdaptError when a class has no training image, when labels and names do not agree one to one, when some
    items have a question and others have none, or one class and others several, or when a part has both images and
    texts, or texts are to be tested.
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
        """`shots` training and min(shots, 4) validation images of each class; the test images stay.

        Of several classes an image counts for the one in `label`, so that some have more images, or fewer.

        Picks and order are those of the published code: CoOp's, or with `sampling="clip-lora"` CLIP-LoRA's (see
        `adapt.data.few_shot`). The global random state is not touched.

        Raises AdaptError when there is nothing to sample.
        """
        if shots < 1:
            raise AdaptError(f"shots is {shots}; expected at least 1 image per class.")
        if not self.train:
            raise AdaptError(f"Data {self.name!r} has no training images to take {shots} shots from.")
        self.check_classes()
        train, val = pick(self.train, self.val, shots, seed, sampling)
        return replace(self, train=train, val=val)

    def check_classes(self) -> None:
        """AdaptError where there are none to tell apart, as in pairs of images and texts."""
        if not self.class_names:
            raise AdaptError(f"Data {self.name!r} are {self.kind}, which have no classes.")

    def with_validation(self, seed: int) -> Split:
        """The same with a fifth of each class's training images for validation, drawn by `seed`, whole groups at once.

        A class whose images are all of one group keeps them. Raises AdaptError where there are validation images.
        """
        if self.val:
            raise AdaptError(f"Data {self.name!r} has validation images already.")
        # of pairs a fifth of all images: each is labelled by its own number
        alike = self.train if self.class_names else tuple(replace(item, label=0) for item in self.train)
        drawn = carve(alike, seed)
        held = {item for item, drawn_as in zip(self.train, alike, strict=True) if drawn_as in drawn}
        train, val = ([item for item in self.train if (item in held) is kept] for kept in (False, True))
        return replace(self, train=tuple(train), val=tuple(val))

    def only(self, classes: str) -> Split:
        """All classes, the base or the new half of them (CoOp), or a part such as 2/3, labelled from 0.

        The parts are consecutive labels, the first ones with one more where they are not equal; base is 1/2 and new
        2/2. To get the published images, sample the shots first: the picks are drawn over all classes.
        """
        if classes == "all":
            return self
        self.check_classes()
        if self.of_several:
            raise AdaptError(f"Data {self.name!r} has images of several classes: no part of them ({classes}) is whole.")
        number, parts = map(int, {"base": "1/2", "new": "2/2"}.get(classes, classes).split("/"))
        size, longer = divmod(len(self.class_names), parts)
        starts = [place * size + min(place, longer) for place in range(parts + 1)]
        kept = range(starts[number - 1], starts[number]) if number <= parts else range(0)
        if not kept:
            count = f"{len(self.class_names)} class" + "es" * (len(self.class_names) > 1)
            raise AdaptError(f"Data {self.name!r} has {count}, of which there is no part {classes!r}.")

        def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(replace(item, label=item.label - kept.start) for item in items if item.label in kept)

        names = self.class_names[kept.start : kept.stop]
        return replace(self, class_names=names, train=part(self.train), val=part(self.val), test=part(self.test))

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of its items, sorted; none where no item names one."""
        return tuple(sorted({item.domain for item in self.items()} - {""}))

    def leaving_out(self, domain: str) -> Split:
        """The same without that domain's images in training and validation, and with no others in the test.

        Data without any test images is tested with all of the domain's. Raises AdaptError, with those that there are,
        for another domain, and where it has no test images, or the rest no training image of some class.
        """
        if domain not in self.domains:
            listed = ", ".join(map(repr, self.domains)) or "none"
            raise AdaptError(f"Data {self.name!r} has no domain {domain!r} to leave out; it has {listed}.")
        test = tuple(item for item in self.test or self.items() if item.domain == domain)
        if not test:
            raise AdaptError(f"Data {self.name!r} has no test images of the domain {domain!r}, which is left out.")
        train, val = (tuple(item for item in part if item.domain != domain) for part in (self.train, self.val))
        return replace(self, train=train, val=val, test=test)

    def renamed(self, names: Mapping[str, str]) -> Split:
        """The same classes under the names that `names` has for them; entries for other classes are passed over.

        Raises AdaptError for a class without an entry, and for two classes of one name.
        """
        missing = [name for name in self.class_names if name not in names]
        if missing:
            named = first_of([*map(repr, missing)])
            raise AdaptError(f"Data {self.name!r}: no name is given for {named}. Give one for every class.")

        def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(replace(item, class_name=item.class_name and names[item.class_name]) for item in items)

        class_names = tuple(names[name] for name in self.class_names)
        return replace(self, class_names=class_names, train=part(self.train), val=part(self.val), test=part(self.test))

    @property
    def turned(self) -> bool:
        """Whether its images are turned upright by their EXIF orientation."""
        return are_turned(self.items())

    def turning(self, turned: bool) -> Split:
        """The same with images that are `turned` upright, or taken as they are stored."""

        def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(replace(item, turned=turned and bool(item.path)) for item in items)

        return replace(self, train=part(self.train), val=part(self.val), test=part(self.test))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the files (relative to `root`), labels and questions of all parts, in order."""
        digest = hashlib.sha256()
        for part, items in (("train", self.train), ("val", self.val), ("test", self.test)):
            for item in items:
                relative = item.path.removeprefix(self.root).replace(os.sep, "/").lstrip("/")
                digest.update(f"{part}\0{_identity(relative, item)}".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    @property
    def of_masks(self) -> bool:
        """Whether it says where images are not as they should be."""
        return any(item.mask for item in self.items())

    @property
    def of_pairs(self) -> bool:
        """Whether its items are images with their texts, perhaps beside texts alone to learn from."""
        return any(item.is_pair for item in self.items())

    @property
    def kind(self) -> str:
        """What its items are, in words."""
        if self.class_names:
            return f"images of {len(self.class_names):,} classes"
        return "pairs of images and texts" if self.of_pairs else "texts alone"

    @property
    def of_several(self) -> bool:
        """Whether its images may have several classes, or none."""
        first = next(self.items(), None)
        return first is not None and first.labels is not None

    def numbered_as(self, class_names: Sequence[str]) -> Split:
        """The same with labels by the order of `class_names`, which are its own in another order."""
        number = [class_names.index(name) for name in self.class_names] + [-1]  # the last one of no class

        def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(
                replace(
                    item,
                    label=number[item.label],
                    labels=None if item.labels is None else tuple(sorted(number[label] for label in item.labels)),
                )
                for item in items
            )

        return replace(
            self, class_names=tuple(class_names), train=part(self.train), val=part(self.val), test=part(self.test)
        )

    def items(self) -> Iterator[Item]:
        """All images: train, then val, then test."""
        return chain(self.train, self.val, self.test)


def of_several(items: Sequence[Item]) -> bool:
    """Whether images may have several classes, or none; all of a data set are of one kind."""
    return bool(items) and items[0].labels is not None


def are_turned(items: Iterable[Item]) -> bool:
    """Whether images are turned upright; a data set's are all turned or none."""
    return any(item.turned for item in items)


def sizes_of_entities(items: Sequence[Item]) -> Counter[str]:
    """How many of the items are of each entity that is named."""
    return Counter(item.entity for item in items if item.entity)


def items_id(items: Sequence[Item]) -> str:
    """16 hex digits that stand for these items, by file name, label and question, in this order, in any folder."""
    listed = "".join(_identity(item.path.rsplit("/", 1)[-1], item) for item in items)
    return hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()[:16]


def _identity(path: str, item: Item) -> str:
    # Nothing where there is none: the digests of other data are on record in runs and results.
    question = f"\0{item.question}" if item.question else ""
    text = f"\0\0{item.text}" if item.text else ""
    target = "" if item.target is None else f"\0\0\0{item.target!r}"
    labels = "" if item.labels is None else f"\0\0\0\0{item.labels!r}"
    mask = f"\0\0\0\0\0{item.mask.rsplit('/', 1)[-1]}" if item.mask else ""
    rephrased = f"\0\0\0\0\0\0{item.rephrased}" if item.rephrased else ""
    entity = f"\0\0\0\0\0\0\0{item.entity}" if item.entity else ""
    overlap = "" if item.overlap is None else f"\0\0\0\0\0\0\0\0{item.overlap!r}"
    return f"{path}\0{item.label}{question}{text}{target}{labels}{mask}{rephrased}{entity}{overlap}\n"
