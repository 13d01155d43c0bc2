"""A data set as lists of labelled files, few of them or all, of all classes or of one half."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from adapt.data.few_shot import Sampling, carve, pick
from adapt.errors import AdaptError
from adapt.shown import first_of, unseen


@dataclass(frozen=True)
class Item:
    """One labelled image. `path` is of `adapt.data.decoding.files`'s forms; `domain` is "" where there are none.

    With a `question` about the image, the class name is the answer, and the label the answer's number. Images of one
    `group`, such as one object's photographs, are more alike than others of their class; "" where none is named.
    Where `path` is "", a `text` stands in the image's place: a model may learn from its features. An image with a text
    is a pair of both: it has no class, and its label is the number of the image, which may have several texts. A text
    may stand alone too, without a class. A `target` is a number, such as a grade, whose class is a word for it.
    """

    path: str
    label: int
    class_name: str
    domain: str = ""
    question: str = ""
    group: str = ""
    text: str = ""
    target: float | None = None

    @property
    def kept_with(self) -> str:
        """What its group is called, an image without one being a group by itself; the same in all classes."""
        return self.group or self.name

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

    `root` is what the paths have in common; it does not enter the fingerprint. A split without any training image is
    for evaluation only; otherwise every class must have one.

    Raises AdaptError when a class has no training image, when labels and names do not agree one to one, when some
    items have a question and others have none, or when a part has both images and texts, or texts are to be tested.
    """

    name: str
    class_names: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    template: str = "a photo of a {}."
    root: str = ""

    def __post_init__(self) -> None:
        _check_names(self)
        _check_domains(self)
        _check_labels(self)
        _check_no_empty_class(self)
        _check_questions(self)
        _check_texts(self)
        _check_targets(self)

    def few_shot(self, shots: int, seed: int, sampling: Sampling = "coop") -> Split:
        """`shots` training and min(shots, 4) validation images of each class; the test images stay.

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
            raise AdaptError(f"Data {self.name!r}: no name is given for {_listed(missing)}. Give one for every class.")

        def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(replace(item, class_name=names[item.class_name]) for item in items)

        class_names = tuple(names[name] for name in self.class_names)
        return replace(self, class_names=class_names, train=part(self.train), val=part(self.val), test=part(self.test))

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
    def of_pairs(self) -> bool:
        """Whether its items are images with their texts, perhaps beside texts alone to learn from."""
        return any(item.is_pair for item in self.items())

    @property
    def kind(self) -> str:
        """What its items are, in words."""
        if self.class_names:
            return f"images of {len(self.class_names):,} classes"
        return "pairs of images and texts" if self.of_pairs else "texts alone"

    def items(self) -> Iterator[Item]:
        """All images: train, then val, then test."""
        return chain(self.train, self.val, self.test)


def items_id(items: Sequence[Item]) -> str:
    """16 hex digits that stand for these items, by file name, label and question, in this order, in any folder."""
    listed = "".join(_identity(item.path.rsplit("/", 1)[-1], item) for item in items)
    return hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()[:16]


def _identity(path: str, item: Item) -> str:
    # Nothing where there is none: the digests of other data are on record in runs and results.
    question = f"\0{item.question}" if item.question else ""
    text = f"\0\0{item.text}" if item.text else ""
    target = "" if item.target is None else f"\0\0\0{item.target!r}"
    return f"{path}\0{item.label}{question}{text}{target}\n"


def _check_names(split: Split) -> None:
    if not split.class_names and not [item for item in split.items() if item.text]:
        raise AdaptError(f"Data {split.name!r} has no classes.")
    first: dict[str, int] = {}
    for label, name in enumerate(split.class_names):
        if not name.strip():
            raise AdaptError(f"Data {split.name!r}: the name of label {label} is empty. Give every class a name.")
        if unseen(name):
            raise AdaptError(
                f"Data {split.name!r}: label {label} is named {name!r}, with a line break or control character. "
                "Take it out."
            )
        if first.setdefault(name, label) != label:
            raise AdaptError(
                f"Data {split.name!r}: labels {first[name]} and {label} are both named {name!r}. "
                "Give each label a name of its own."
            )


def _check_domains(split: Split) -> None:
    for domain in filter(unseen, {item.domain for item in split.items()}):
        raise AdaptError(
            f"Data {split.name!r}: the domain {domain!r} has a line break or control character. Take it out."
        )


def _check_labels(split: Split) -> None:
    for item in split.items() if split.class_names else ():
        if not 0 <= item.label < len(split.class_names):
            raise AdaptError(
                f"Data {split.name!r}: {item.name!r} has label {item.label}; "
                f"expected 0 to {len(split.class_names) - 1}, one for each class name."
            )
        if item.class_name != split.class_names[item.label]:
            raise AdaptError(
                f"Data {split.name!r}: {item.name!r} has label {item.label} and the name {item.class_name!r}, "
                f"but label {item.label} is {split.class_names[item.label]!r}."
            )


def _check_no_empty_class(split: Split) -> None:
    if not (split.train and split.class_names):
        return
    if split.train[0].question or split.train[0].target is not None:
        return  # whoever answers in words, or by numbers, may say what no one told it
    present = {item.label for item in split.train}
    empty = [name for label, name in enumerate(split.class_names) if label not in present]
    if empty:
        raise AdaptError(
            f"Data {split.name!r}: no training image of {_listed(empty)}. "
            "Add images to each class or take the class out."
        )


def _check_questions(split: Split) -> None:
    asked: dict[bool, Item] = {}
    for item in split.items():
        asked.setdefault(bool(item.question), item)
    if len(asked) == 2:
        raise AdaptError(
            f"Data {split.name!r}: {asked[True].path!r} has a question and {asked[False].path!r} has none. "
            "Give every item a question, or none."
        )


def _check_texts(split: Split) -> None:
    pairs = {item.is_pair: item for item in split.items() if item.path}
    if len(pairs) == 2 or (True in pairs and split.class_names):
        other = f"{pairs[False].name!r} has not" if False in pairs else f"there are classes: {split.class_names[0]!r}"
        raise AdaptError(
            f"Data {split.name!r}: {pairs[True].path!r} has a text beside it, and {other}. Pairs of images and texts "
            "are data of their own, without classes."
        )
    for part, items in (("train", split.train), ("val", split.val), ("test", split.test)):
        kinds = {bool(item.path): item for item in items}
        if len(kinds) == 2:
            raise AdaptError(
                f"Data {split.name!r}: the part {part} has images ({kinds[True].path!r}) and texts "
                f"({kinds[False].text!r}). Give each part one of both."
            )
    if split.test and not split.test[0].path:
        raise AdaptError(
            f"Data {split.name!r}: the text {split.test[0].text!r} is to be tested. A model learns from texts and "
            "classifies images: give images for the part test, or none."
        )
    for item in split.items():
        if not (item.path or item.text.strip()):
            raise AdaptError(f"Data {split.name!r}: an item of {item.class_name!r} has neither an image nor a text.")


def _check_targets(split: Split) -> None:
    known: dict[bool, Item] = {}
    for item in split.items():
        known.setdefault(item.target is not None, item)
        if item.target is not None and not math.isfinite(item.target):
            raise AdaptError(f"Data {split.name!r}: the target of {item.name!r} is {item.target}; expected a number.")
    if len(known) == 2:
        raise AdaptError(
            f"Data {split.name!r}: {known[True].name!r} has a target and {known[False].name!r} has none. Give every "
            "item a number, or none."
        )


def _listed(names: Sequence[str]) -> str:
    return first_of([*map(repr, names)])
