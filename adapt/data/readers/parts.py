"""The parts of a split (train, val, test): what people call them, and a seeded division of data that has none."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from adapt.common.errors import AdaptError, nearest
from adapt.common.grouping import grouped
from adapt.common.shown import brief

RATIOS = (0.6, 0.1, 0.3)
NAMES = ("train", "val", "test")
UNLABELLED = "unlabelled"  # the part of images without a label, beside the others

_CALLED = {
    "train": "train|training",
    "val": "val|valid|validation|dev",
    "test": "test|testing",
    UNLABELLED: "unlabell?ed",
}
_WHOLE = re.compile(
    "(?:" + "|".join(f"(?P<{part}>{names})" for part, names in _CALLED.items()) + ")"
    "(?:set|split|data|dataset|images|imgs|pictures|photos|folder)*"
)
_NO_LETTERS, _WORD = re.compile(r"[\W\d_]+"), re.compile(r"[^\W_]+")


def part_of(name: str) -> str:
    """Return the part of a split that people call `name`, such as "train" for "Training_Set", or else ""."""
    match = _WHOLE.fullmatch(_NO_LETTERS.sub("", name.casefold()))
    return match.lastgroup or "" if match else ""


def read(value: object, where: str, others: Sequence[str] = ()) -> str:
    """Return the part that a list names for an item: train, val or test, or one of `others`.

    Raises AdaptError, with a message that starts with `where`, for any other value.
    """
    part = part_of(value) if isinstance(value, str) else ""
    if part not in (*NAMES, *others):
        raise AdaptError(f"{where}: unknown split {brief(value)}; {nearest(str(value), (*NAMES, *others))}")
    return part


def without_part(name: str) -> str:
    """Return `name` in lower case with a mark in place of words that name a part, such as "cats_*" for "cats_train"."""
    return _WORD.sub(lambda word: "*" if part_of(word[0]) else word[0], name.casefold())


def assign(class_names: Sequence[str], ratios: Sequence[float], seed: int) -> list[str]:
    """Return the part of the split ("train", "val" or "test") for each image, given the class of each image.

    The images of each class are shuffled with a separate seed and divided by `ratios`, so that adding a class does not
    change the parts of other classes. At least one image of each class is for training.

    Raises AdaptError if `ratios` is not three fractions that add up to 1, or if the fraction of train is 0.
    """
    if len(ratios) != 3 or min(ratios) < 0 or ratios[0] == 0 or abs(sum(ratios) - 1) > 1e-6:
        raise AdaptError(
            f"ratios is {tuple(ratios)}; expected three fractions, for train (above 0), val and test, that add up to 1"
        )
    parts = ["test"] * len(class_names)
    for name, indices in grouped((name, index) for index, name in enumerate(class_names)).items():
        random.Random(f"{seed}/{name}".encode(errors="surrogateescape")).shuffle(indices)
        train_end = max(1, round(len(indices) * ratios[0]))
        val_end = max(train_end, round(len(indices) * (ratios[0] + ratios[1])))
        for position, index in enumerate(indices[:val_end]):
            parts[index] = "train" if position < train_end else "val"
    return parts
