"""A data set, divided into train, validation and test items, with few-shot and base/new subsets and with folds.

Few-shot sampling draws for each seed the same images as the published code of CoOp or CLIP-LoRA. In cross-validation
by folds, each image is predicted by a model that was trained on neither it nor others of its group.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, TypeAlias, get_args

from adapt.common.errors import AdaptError, nearest, noting
from adapt.common.grouping import grouped
from adapt.common.shown import first_of, unseen
from adapt.data.bags import has_bags
from adapt.data.item import Item, LabelKind, items_id, kind_of

Items: TypeAlias = tuple[Item, ...]
Sampling = Literal["coop", "clip-lora"]
_MAX_VAL_SHOTS = 4


@dataclass(frozen=True)
class Split:
    """A data set divided into train, validation and test items, in which class `i` is called `class_names[i]`.

    `class_names` is empty for tasks without classes, such as pairs of images and texts.

    `unlabelled` are images without a class, from which some methods learn beside, or instead of, those in `train`.

    `root` is the common parent folder of all paths, and is not part of the fingerprint. `ratios` are the fractions of
    train, val and test items if a reader divided the data, and None if the data set came with a split. A split without
    any training item is for evaluation only. In any other split, every class must have a training item, except with
    `unseen`, and in tasks that learn classes without training items.

    Raises AdaptError if a class has no training item, if an item's class is not in `class_names`, if an unlabelled item
    has a label or is a text, if a part (train, val, test) mixes two tasks or images with texts, if test items are
    texts, or if the task rejects items.
    """

    name: str
    class_names: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    unlabelled: tuple[Item, ...] = ()
    template: str = "a photo of a {}."
    root: str = ""
    ratios: tuple[float, ...] | None = field(default=None, compare=False)
    unseen: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        problems = list[str]()
        for check in _CHECKS:
            with noting(problems):
                check(self)
        if problems:
            raise InconsistentError(problems, self)

    def few_shot(self, shots: int, seed: int, sampling: Sampling = "coop") -> Split:
        """Return a split with `shots` training and min(shots, 4) validation images per class, and all test images.

        An image with several classes counts for only one of its classes, usually the rarest, so some classes get more
        or fewer images than `shots`. The images and their order match the published code of CoOp, or of CLIP-LoRA with
        `sampling="clip-lora"` (see `adapt.data.split`). The global random state is not changed.

        Raises AdaptError if `shots` is below 1, or if the data set has no training images or no classes.
        """
        if shots < 1:
            raise AdaptError(f"shots is {shots}; expected at least 1 image per class")
        if not self.train:
            raise AdaptError(f"data {self.name!r} has no training images to take {shots} shots from")
        self.check_classes()
        train, val = pick(self.train, self.val, shots, seed, sampling)
        return replace(self, train=train, val=val)

    def keeping_rest(self, whole: Split) -> Split:
        """Return a split that also has those training images of `whole` that were not drawn, as unlabelled images."""
        drawn = {*self.train, *self.val}
        rest = tuple(item.without_label() for item in whole.train if item not in drawn)
        return replace(self, unlabelled=self.unlabelled + rest)

    def check_classes(self) -> None:
        """Raise AdaptError if the data set has no classes, as is the case for pairs of images and texts."""
        if not self.class_names:
            raise AdaptError(f"data {self.name!r} contains {self.task.items_are}, which have no classes")

    def with_validation(self, seed: int) -> Split:
        """Return a split with about a fifth of each class's training images moved to validation, as by `held_back`.

        Raises AdaptError if the split already has validation images.
        """
        if self.val:
            raise AdaptError(f"data {self.name!r} already has validation images")
        train, val = held_back(self.train, 1 / 5, seed)
        return replace(self, train=tuple(train), val=tuple(val))

    def only(self, classes: str) -> Split:
        """Return a split with a subset of the classes, renumbered from 0: "all", "base", "new" or a part such as "2/3".

        The part "2/3" is the second of three groups of consecutive classes. If the groups cannot be equally large, the
        first groups have one class more. "base" is "1/2" and "new" is "2/2", as in CoOp. To get the published images,
        call `few_shot` before `only`, because CoOp draws the few-shot images from all classes.
        """
        if classes == "all":
            return self
        self.check_classes()
        if not self.task.divisible:
            raise AdaptError(f"data {self.name!r} has {self.task.title}, and cannot be divided by classes ({classes})")
        number, parts = map(int, {"base": "1/2", "new": "2/2"}.get(classes, classes).split("/"))
        size, longer = divmod(len(self.class_names), parts)
        starts = [place * size + min(place, longer) for place in range(parts + 1)]
        chosen = range(starts[number - 1], starts[number]) if number <= parts else range(0)
        if not chosen:
            count = f"{len(self.class_names)} class" + "es" * (len(self.class_names) > 1)
            raise AdaptError(f"data {self.name!r} has {count}, so the part {classes!r} of the classes is empty")

        names = self.class_names[chosen.start : chosen.stop]
        own = set(names)
        return self.mapped(lambda items: (item for item in items if own.issuperset(item.class_names)), names)

    @property
    def domains(self) -> tuple[str, ...]:
        """The sorted names of all domains in the data set; empty if the items have no domains."""
        return tuple(sorted({item.domain for item in self.items()} - {""}))

    def leaving_out(self, domain: str) -> Split:
        """Return a split for domain generalisation that tests on `domain` and trains on all other domains.

        If the data set has no test images, all images of `domain` become test images. Raises AdaptError, with a list of
        the domains, if `domain` is unknown. Also raises AdaptError if `domain` has no test images, or if a class has no
        training image in the other domains.
        """
        if domain not in self.domains:
            listed = ", ".join(map(repr, self.domains)) or "none"
            raise AdaptError(f"data {self.name!r} has no domain {domain!r} to leave out; its domains: {listed}")
        test = tuple(item for item in self.test or self.items() if item.domain == domain)
        if not test:
            raise AdaptError(f"data {self.name!r} has no test images of the domain {domain!r}: add test images")
        learned = self.train, self.val, self.unlabelled
        train, val, unlabelled = (tuple(item for item in part if item.domain != domain) for part in learned)
        return replace(self, train=train, val=val, test=test, unlabelled=unlabelled)

    def renamed(self, names: Mapping[str, str]) -> Split:
        """Return a copy of the split whose classes are renamed by `names`, a dict from old to new names.

        Unknown old names are ignored. Raises AdaptError if a class has no new name, or if two classes get the same
        name.
        """
        missing = [name for name in self.class_names if name not in names]
        if missing:
            named = first_of([*map(repr, missing)])
            raise AdaptError(f"data {self.name!r}: no name is given for {named}. Give a name for every class")

        class_names = tuple(names[name] for name in self.class_names)
        return self.mapped(lambda items: (item.renamed(names) for item in items), class_names)

    @property
    def turned(self) -> bool:
        """Whether the images are rotated upright by their EXIF orientation."""
        return are_turned(self.items())

    def turning(self, turned: bool) -> Split:
        """Return a copy of the split with images rotated upright by EXIF if `turned`, and otherwise used as stored."""
        return self.mapped(lambda items: (replace(item, turned=turned and bool(item.paths)) for item in items))

    def mapped(self, change: Callable[[Items], Iterable[Item]], class_names: tuple[str, ...] | None = None) -> Split:
        """Return a copy of the split with `change` applied to each part, and with new `class_names` if given."""
        train, val, test, unlabelled = (tuple(change(getattr(self, part))) for part in PARTS)
        names = self.class_names if class_names is None else class_names
        return replace(self, class_names=names, train=train, val=val, test=test, unlabelled=unlabelled)

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of all items in order, by part, file below `root`, and label."""
        digest = hashlib.sha256()
        numbers = {name: number for number, name in enumerate(self.class_names)}
        for part in PARTS:
            for item in getattr(self, part):
                relative = item.path.removeprefix(self.root).replace(os.sep, "/").lstrip("/")
                known = item.identity(relative, self.root), [numbers[name] for name in item.class_names]
                told = f"{part}\0{json.dumps(known)}{item.label.caption * (part == 'train')}\n"  # where it is read
                digest.update(told.encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    @property
    def identity(self) -> dict[str, object]:
        """The hashes of all labels and all files, and the names of the classes, by which changed data are noticed."""
        items = [*self.items(), *self.unlabelled]
        return {"labels": self.fingerprint, "files": items_id(items), "class_names": [*self.class_names]}

    @property
    def task(self) -> LabelKind:
        """The part of the items' task that data need; `adapt.tasks.of` returns the task itself."""
        return kind_of(self.items())

    @property
    def noun(self) -> str:
        """The noun for the items in counts, such as "images"; "items" if some of them have several images."""
        return "items" if has_bags(self.items()) else self.task.noun

    @property
    def kind(self) -> str:
        """A description of the items, such as "images of 10 classes"."""
        return f"images of {len(self.class_names):,} classes" if self.class_names else self.task.items_are

    def items(self) -> Iterator[Item]:
        """Yield all labelled items of the split, in the order train, val, test."""
        return chain(self.train, self.val, self.test)


def are_turned(items: Iterable[Item]) -> bool:
    """Return whether the images of a data set are rotated upright by EXIF, which applies to all images or to none."""
    return any(item.turned for item in items)


_SURROGATE = re.compile("[\ud800-\udfff]")  # what stands for bytes of a name that are no UTF-8


class InconsistentError(AdaptError):
    """What keeps data from being a data set: `problems` of its rows, which `of_rows` counts, then those of the split.

    The message is the first problem. `split` has what could be read; it is None if the other rows make no split.
    """

    def __init__(self, problems: Sequence[str], split: Split | None, of_rows: int = 0) -> None:
        super().__init__(problems[0])
        self.problems, self.split, self.of_rows = list(problems), split, of_rows


def _check_names(split: Split) -> None:
    if not split.class_names and all(item.task.classes_are for item in split.items()):
        raise AdaptError(f"data {split.name!r} has no classes. Give at least one class")
    first: dict[str, int] = {}
    for label, name in enumerate(split.class_names):
        if not name.strip():
            raise AdaptError(f"data {split.name!r}: the name of label {label} is empty. Give every class a name")
        if unseen(name):
            wrong = "is not valid UTF-8" if _SURROGATE.search(name) else "has a line break or control character"
            raise AdaptError(f"data {split.name!r}: the name {name!r} of label {label} {wrong}. Rename the class")
        if first.setdefault(name, label) != label:
            raise AdaptError(
                f"data {split.name!r}: labels {first[name]} and {label} are both named {name!r}. "
                "Give each label a different name"
            )


def _check_domains(split: Split) -> None:
    for domain in filter(unseen, {item.domain for item in split.items()}):
        raise AdaptError(
            f"data {split.name!r}: the domain {domain!r} has a line break or control character. Remove the character"
        )


def _check_classes(split: Split) -> None:
    known = set(split.class_names)
    for item in split.items():
        if not known.issuperset(item.class_names):
            raise AdaptError(
                f"data {split.name!r}: {item.name!r} has the class {item.answer!r}; expected one of the data set's "
                f"{len(known):,} class names, {first_of([*map(repr, split.class_names)])}"
            )


def _check_unlabelled(split: Split) -> None:
    for item in split.unlabelled:
        if item.class_names or not item.path:
            what = f"the class {item.answer!r}" if item.class_names else "no image"
            raise AdaptError(f"data {split.name!r}: the unlabelled item {item.name!r} has {what}; expected an image")


def _check_no_empty_class(split: Split) -> None:
    learned = split.unseen or any(task.learns_unseen for task in _tasks(split))
    if learned or not (split.train and split.class_names):
        return
    present = {name for item in split.train for name in item.class_names}
    empty = [name for name in split.class_names if name not in present]
    if empty:
        tested = {name for item in split.test for name in item.class_names} & set(empty)
        masks = "a column mask, or the folders of MVTec AD by defects:FOLDER"
        defects = f". For classes of defects, give the test images masks: {masks}" if tested else ""
        raise AdaptError(
            f"data {split.name!r}: no training image of {first_of([*map(repr, empty)])}. Add training images of "
            f"each class, or remove classes that have none{defects}"
        )


def check_kind(items: Sequence[Item], what: str) -> None:
    """Raise AdaptError if the items, which are `what`, mix labels of different tasks, or images with texts."""
    _check_one_task({item.task: item for item in reversed(items)}, what)
    kinds = {bool(item.path): item for item in items if not item.task.mixes_texts}
    if len(kinds) == 2:
        raise AdaptError(
            f"{what} has both images ({kinds[True].path!r}) and texts ({kinds[False].text!r}). Use only images, or "
            "only texts, in each of train, val and test"
        )


def _check_one_task(first_of: Mapping[LabelKind | None, Item], what: str) -> None:
    if len(first_of) > 1:
        one, other, *_ = first_of.values()
        raise AdaptError(
            f"{what}: {one.name!r} is labelled for the task {one.task.name} ({one.task.title}), but {other.name!r} for "
            f"the task {other.task.name} ({other.task.title}). Label all items for the same task"
        )


def _check_kinds(split: Split) -> None:
    """Raise AdaptError if a part mixes kinds of items, if only some parts have classes, or if a task's check fails."""
    for part, items in (("train", split.train), ("val", split.val), ("test", split.test)):
        check_kind(items, f"data {split.name!r}: the {part} data")
    # one part may have pairs and another only texts
    of_classes = {item.task if item.task.classes_are else None: item for item in split.items()}
    _check_one_task(of_classes, f"data {split.name!r}")
    for task in _tasks(split):
        task.check([*split.items()], split.name)


def _tasks(split: Split) -> list[LabelKind]:
    return list(dict.fromkeys(item.task for item in split.items()))


def _check_texts(split: Split) -> None:
    if split.test and not (split.test[0].path or split.test[0].task.mixes_texts):
        raise AdaptError(
            f"data {split.name!r}: the test data has the text {split.test[0].text!r}; expected images. A model can be "
            "trained on texts but tested only on images: give test images, or no test data"
        )
    for item in split.items():
        if item.paths and item.text and item.task.classes_are:
            raise AdaptError(
                f"data {split.name!r}: {item.name!r} has both a text and a label for the task {item.task.name}, but "
                "pairs of images and texts have no classes. Remove the texts, or the labels"
            )
        if not (item.paths or item.text.strip()):
            raise AdaptError(f"data {split.name!r}: an item of class {item.answer!r} has no image and no text")


_CHECKS = (
    _check_names,
    _check_domains,
    _check_kinds,
    _check_classes,
    _check_unlabelled,
    _check_no_empty_class,
    _check_texts,
)


def pick(train: Items, val: Items, shots: int, seed: int, sampling: Sampling) -> tuple[Items, Items]:
    """Return `shots` training and min(shots, 4) validation images of each class, in the order in which they are drawn.

    The rule `coop` (of CoOp `ff61507` and Dassl) samples from `train`, then from `val`. If a class has too few images,
    all images of the class are returned.

    The rule `clip-lora` (of CLIP-LoRA `358f0d7`) samples from `val`, then from `train`. If a class has too few images,
    some images are returned more than once. If `val` is empty, as for ImageNet, training and validation images are
    sampled together from `train`, and the last sampled images are for validation. Raises AdaptError for any other
    `sampling`, and if `train` has too few images to sample training and validation images from it.
    """
    if sampling not in get_args(Sampling):
        raise AdaptError(f"sampling is {sampling!r}; {nearest(sampling, get_args(Sampling))}")
    if seed < 0:
        raise AdaptError(f"seed is {seed}; expected 0 or more, because Python draws the same numbers for -1 and 1")
    stream, val_shots = random.Random(seed), min(shots, _MAX_VAL_SHOTS)
    if sampling == "coop":
        return _drawn(train, shots, stream), _drawn(val, val_shots, stream)
    if not val:
        return _both(train, shots, val_shots, stream)
    picked_val = _drawn(val, val_shots, stream, again=True)
    return _drawn(train, shots, stream, again=True), picked_val


def _drawn(items: Items, shots: int, stream: random.Random, again: bool = False) -> Items:
    """Return `shots` items of each class; of a class with fewer, all items or, with `again`, some more than once."""
    few: Callable[[list[Item]], list[Item]] = (lambda group: stream.choices(group, k=shots)) if again else list
    return _flat(few(group) if len(group) < shots else stream.sample(group, shots) for group in by_stratum(items))


def _both(items: Items, shots: int, val_shots: int, stream: random.Random) -> tuple[Items, Items]:
    needed = shots + val_shots
    for group in by_stratum(items):
        if len(group) < needed:
            raise AdaptError(
                f"class {group[0].answer!r} has {len(group)} training images, but sampling=clip-lora needs {needed} "
                "of each class if there are no validation images. Use fewer shots, or sampling=coop"
            )
    picks = [stream.sample(group, needed) for group in by_stratum(items)]
    return _flat(group[:shots] for group in picks), _flat(group[shots:] for group in picks)


def by_stratum(items: Sequence[Item]) -> list[list[Item]]:
    """Return the items grouped by `Item.stratum`, usually the class, in the order in which groups first appear."""
    return list(grouped((item.stratum, item) for item in items).values())


def _flat(groups: Iterable[list[Item]]) -> Items:
    return tuple(chain.from_iterable(groups))


def held_back(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Return the items that stay, and about a `share` of each class's, but at least one, drawn by `seed`.

    Groups, such as photographs of one object, stay together. Of a class whose images are all of one, none is drawn.
    """
    stream, taken, staying = random.Random(seed), set[str](), set[str]()
    for images in by_stratum(items):
        sizes = Counter(item.kept_with for item in images)
        drawn, wanted = list(sizes), max(1, int(share * len(images)))
        stream.shuffle(drawn)
        staying.add(next((group for group in drawn if group not in taken), drawn[0]))
        held = sum(sizes[group] for group in drawn if group in taken)
        for group in drawn:
            if held < wanted and group not in staying | taken:
                taken.add(group)
                held += sizes[group]
    held_out = taken - staying
    kept, out = ([item for item in items if (item.kept_with in held_out) is held] for held in (False, True))
    return kept, out


PARTS = ("train", "val", "test", "unlabelled")
MOST = 5  # folds by default


def usual_count(items: Sequence[Item], most: int = MOST) -> int:
    """Return the default number of folds: the median number of images per class, but at least two and at most `most`.

    With this number, every model is trained on about equally many images of each class. With two images per class and
    five folds, for example, a model would be trained on two images of most classes but on only one image of the tested
    class, and would seldom predict the tested class.
    """
    from statistics import median  # which takes a while to import

    counts = Counter(item.stratum if item.task.one_class else "" for item in items)
    return max(2, min(most, round(median(counts.values())))) if counts else 2


def folds(items: Sequence[Item], count: int, seed: int, every_class: bool = True) -> list[int | None]:
    """Return the fold number (0 to `count` - 1) of each item, stratified by class, with groups kept together.

    A group may have images of several classes. If all groups of a class are in one fold, such as for a class with a
    single group, the fold number of the class's items is None: every model must be trained on these items, so that no
    model can be tested on them. Without `every_class`, a model need not be trained on every class, and this holds only
    for a single group of all items. Raises AdaptError for fewer than two folds.
    """
    if count < 2:
        raise AdaptError(f"folds is {count}; expected at least 2, one fold to test on and other folds to train on")
    stream, fold_of = random.Random(seed), dict[str, int]()
    names_of = grouped((item.stratum, item.kept_with) for item in items)
    groups = {stratum: Counter(names) for stratum, names in names_of.items()}  # numbers of images
    for own in groups.values():
        drawn = list(own)
        stream.shuffle(drawn)
        sizes, order = [0] * count, stream.sample(range(count), count)
        for group in sorted(drawn, key=lambda each: -own[each]):  # into the fold with the fewest of the class
            fold = fold_of.setdefault(group, min(order, key=lambda each: sizes[each]))
            sizes[fold] += own[group]
    parts = groups.values() if every_class else [fold_of]
    together = [own for own in parts if len({fold_of[group] for group in own}) == 1]
    undivided = {group for own in together for group in own}
    return [None if item.kept_with in undivided else fold_of[item.kept_with] for item in items]


def kept_and_held(chosen: Sequence[int | None], count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (indices of the training items, indices of the held-out items) for each fold that has items."""
    for fold in range(count):
        held = [place for place, own in enumerate(chosen) if own == fold]
        if held:
            yield [place for place, own in enumerate(chosen) if own != fold], held


def parts(split: Split, chosen: Sequence[int | None], count: int) -> Iterator[tuple[Split, list[int]]]:
    """Yield (split with the fold as test data and the other images as training data, fold's indices) for each fold."""
    for learned, held_out in kept_and_held(chosen, count):
        train, test = (tuple(split.train[place] for place in own) for own in (learned, held_out))
        yield replace(split, train=train, test=test), held_out
