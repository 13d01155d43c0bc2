"""The parts of a split (train, val, test): their names, and a seeded division of data that has none."""

from __future__ import annotations

import random
from collections.abc import Sequence

from adapt.common.errors import AdaptError

RATIOS = (0.6, 0.1, 0.3)
ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNLABELLED = "unlabelled"  # the part of images without a label, beside the others


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
    by_class: dict[str, list[int]] = {}
    for index, name in enumerate(class_names):
        by_class.setdefault(name, []).append(index)
    parts = ["test"] * len(class_names)
    for name, indices in by_class.items():
        random.Random(f"{seed}/{name}".encode(errors="surrogateescape")).shuffle(indices)
        train_end = max(1, round(len(indices) * ratios[0]))
        val_end = max(train_end, round(len(indices) * (ratios[0] + ratios[1])))
        for position, index in enumerate(indices[:val_end]):
            parts[index] = "train" if position < train_end else "val"
    return parts
