"""Checks that a split is consistent: labels have names, parts do not mix tasks, classes have training images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError
from adapt.common.shown import first_of, unseen

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.data.split import Split
    from adapt.tasks import Task


_SURROGATE = re.compile("[\ud800-\udfff]")  # what stands for bytes of a name that are no UTF-8


class InconsistentError(AdaptError):
    """What keeps data from being a data set: `problems` of its rows, which `of_rows` counts, then those of the split.

    The message is the first problem. `split` has what could be read; it is None if the other rows make no split.
    """

    def __init__(self, problems: Sequence[str], split: Split | None, of_rows: int = 0) -> None:
        super().__init__(problems[0])
        self.problems, self.split, self.of_rows = list(problems), split, of_rows


def check_consistent(split: Split) -> None:
    """Raise InconsistentError if `split` breaks rules that the docstring of `Split` lists, with the item or class."""
    problems = []
    for check in _CHECKS:
        try:
            check(split)
        except AdaptError as error:
            problems.append(str(error))
    if problems:
        raise InconsistentError(problems, split)


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


def _check_tasks(split: Split) -> None:
    """Raise AdaptError if one part of the split (train, val, test) mixes labels of different tasks.

    Also raises AdaptError if only some of train, val and test have labels with classes, or if the task's check fails.
    """
    for part in (split.train, split.val, split.test):
        of_tasks = {item.task: item for item in reversed(part)}
        _check_one([*of_tasks.values()], split.name)
    # one part may have pairs and another only texts
    of_kinds = {item.task if item.task.classes_are else None: item for item in split.items()}
    _check_one([*of_kinds.values()], split.name)
    for task in _tasks(split):
        task.check(split)


def _check_one(firsts: list[Item], name: str) -> None:
    if len(firsts) > 1:
        one, other = firsts[:2]
        raise AdaptError(
            f"data {name!r}: {one.name!r} is labelled for the task {one.task.name} ({one.task.title}), but "
            f"{other.name!r} for the task {other.task.name} ({other.task.title}). Label all items for the same task"
        )


def _tasks(split: Split) -> list[Task]:
    return list(dict.fromkeys(item.task for item in split.items()))


def _check_texts(split: Split) -> None:
    for part, items in (("train", split.train), ("val", split.val), ("test", split.test)):
        kinds = {bool(item.path): item for item in items if not item.task.mixes_texts}
        if len(kinds) == 2:
            raise AdaptError(
                f"data {split.name!r}: the {part} data has both images ({kinds[True].path!r}) and texts "
                f"({kinds[False].text!r}). Use only images, or only texts, in each of train, val and test"
            )
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
    _check_tasks,
    _check_classes,
    _check_unlabelled,
    _check_no_empty_class,
    _check_texts,
)
