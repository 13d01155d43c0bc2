"""Few-shot sampling, which draws for each seed the same images as the published code of CoOp or CLIP-LoRA."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Literal, get_args

from adapt.common.errors import AdaptError, nearest

if TYPE_CHECKING:
    from adapt.data.item import Item

    Items = tuple[Item, ...]

Sampling = Literal["coop", "clip-lora"]
_MAX_VAL_SHOTS = 4


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
        return _all_if_few(train, shots, stream), _all_if_few(val, val_shots, stream)
    if not val:
        return _both(train, shots, val_shots, stream)
    picked_val = _repeated_if_few(val, val_shots, stream)
    return _repeated_if_few(train, shots, stream), picked_val


def carve(train: Items, seed: int) -> set[Item]:
    """Return the training images to use for validation: a fifth of the images of each class, at least one.

    Images of one group stay together, and at least one group of each class remains for training.
    """
    stream, taken, staying = random.Random(seed), set[str](), set[str]()
    for images in _by_stratum(train):
        groups: dict[str, list[Item]] = {}
        for item in images:
            groups.setdefault(item.kept_with, []).append(item)
        drawn, wanted = list(groups), max(1, len(images) // 5)
        stream.shuffle(drawn)
        staying.add(next((group for group in drawn if group not in taken), drawn[0]))
        held = sum(len(groups[group]) for group in drawn if group in taken)
        for group in drawn:
            if held < wanted and group not in staying | taken:
                taken.add(group)
                held += len(groups[group])
    return {item for item in train if item.kept_with in taken - staying}


def _all_if_few(items: Items, shots: int, stream: random.Random) -> Items:
    return _flat(group if len(group) < shots else stream.sample(group, shots) for group in _by_stratum(items))


def _repeated_if_few(items: Items, shots: int, stream: random.Random) -> Items:
    return _flat(
        stream.choices(group, k=shots) if len(group) < shots else stream.sample(group, shots)
        for group in _by_stratum(items)
    )


def _both(items: Items, shots: int, val_shots: int, stream: random.Random) -> tuple[Items, Items]:
    needed = shots + val_shots
    for group in _by_stratum(items):
        if len(group) < needed:
            raise AdaptError(
                f"class {group[0].answer!r} has {len(group)} training images, but sampling=clip-lora needs {needed} "
                "of each class if there are no validation images. Use fewer shots, or sampling=coop"
            )
    picks = [stream.sample(group, needed) for group in _by_stratum(items)]
    return _flat(group[:shots] for group in picks), _flat(group[shots:] for group in picks)


def _by_stratum(items: Items) -> list[list[Item]]:
    """Return the items grouped by `Item.stratum`, usually the class, in the order in which groups first appear."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.stratum, []).append(item)
    return list(groups.values())


def _flat(groups: Iterable[list[Item]]) -> Items:
    return tuple(chain.from_iterable(groups))
