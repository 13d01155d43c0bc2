"""What makes no data set: labels without names, parts of two kinds, a class that nothing can be learned of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from adapt.errors import AdaptError
from adapt.shown import first_of, unseen

if TYPE_CHECKING:
    from adapt.data.split import Item, Split


_collected: ContextVar[list[str] | None] = ContextVar("_collected", default=None)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """Collect problems in place of raising them, so that the rest of a data set can be looked at."""
    problems: list[str] = []
    before = _collected.set(problems)
    try:
        yield problems
    finally:
        _collected.reset(before)


def check_consistent(split: Split) -> None:
    """AdaptError, naming the item or the class, for what `Split` says that it raises it for."""
    problems = _collected.get()
    for check in _CHECKS:
        try:
            check(split)
        except AdaptError as error:
            if problems is None:
                raise
            problems.append(str(error))


def _check_names(split: Split) -> None:
    if not split.class_names and not any(item.text for item in split.items()):
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
        if item.labels == () and (item.label, item.class_name) == (-1, ""):
            continue
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
    if split.train[0].question or split.train[0].target is not None or split.of_masks:
        return  # whoever answers in words, or by numbers, may say what no one told it; and defects come unforeseen
    present = {label for item in split.train for label in item.every_label}
    empty = [name for label, name in enumerate(split.class_names) if label not in present]
    if empty:
        tested = {item.class_name for item in split.test} & set(empty)
        defects = " If they are defects, which need none, give the test images masks (a column mask)." if tested else ""
        raise AdaptError(
            f"Data {split.name!r}: no training image of {first_of([*map(repr, empty)])}. "
            f"Add images to each class or take the class out.{defects}"
        )


def _check_several(split: Split) -> None:
    kinds: dict[bool, Item] = {}
    for item in split.items():
        kinds.setdefault(item.labels is not None, item)
        if item.labels is None:
            continue
        if sorted(set(item.labels)) != list(item.labels) or item.label not in (item.labels or (-1,)):
            raise AdaptError(
                f"Data {split.name!r}: {item.name!r} has the labels {item.labels} and the label {item.label}; expected "
                "different ones in ascending order, the label being one of them."
            )
        if item.labels and item.labels[-1] >= len(split.class_names):
            raise AdaptError(
                f"Data {split.name!r}: {item.name!r} has label {item.labels[-1]}; expected 0 to "
                f"{len(split.class_names) - 1}, one for each class name."
            )
        if item.question or item.text or item.number is not None:
            raise AdaptError(
                f"Data {split.name!r}: {item.name!r} has several labels beside a question, a text, a target or an "
                "overlap: give images alone several classes."
            )
    if len(kinds) == 2:
        raise AdaptError(
            f"Data {split.name!r}: {kinds[True].name!r} has a list of labels and {kinds[False].name!r} has one label. "
            "Give every image a list, or none."
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


def _check_numbers(split: Split) -> None:
    for kind, article in (("target", "a"), ("overlap", "an")):
        known: dict[bool, Item] = {}
        for item in split.items():
            known.setdefault(getattr(item, kind) is not None, item)
        if len(known) == 2:
            raise AdaptError(
                f"Data {split.name!r}: {known[True].name!r} has {article} {kind} and {known[False].name!r} has none. "
                "Give every item a number, or none."
            )
    for item in split.items():
        if item.target is not None and not math.isfinite(item.target):
            raise AdaptError(f"Data {split.name!r}: the target of {item.name!r} is {item.target}; expected a number.")
        if item.overlap is not None and not 0 <= item.overlap <= 1:
            raise AdaptError(
                f"Data {split.name!r}: the overlap of {item.name!r} is {item.overlap}; expected a number from 0 to 1."
            )
        if item.target is not None and item.overlap is not None:
            raise AdaptError(f"Data {split.name!r}: {item.name!r} has a target and an overlap. Give one of both.")


_CHECKS = (
    _check_names,
    _check_domains,
    _check_labels,
    _check_no_empty_class,
    _check_several,
    _check_questions,
    _check_texts,
    _check_numbers,
)
