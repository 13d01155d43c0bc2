"""Questions where a thing is behind examples of it in other pictures: `examples:N:DATA`, with N examples for each.

Doveh et al., Teaching VLMs to Localize Specific Objects from In-context Examples (IPLoc, 2411.13317); reference
SivanDoveh/IPLoc `27682bc`, without code for training. Its examples are frames of the same video; these are other
pictures of the same part of the data that show things of the same name. Its names are replaced in a share of the
conversations, by words that say nothing of the thing, so that a model must look at the examples: here in half of those
of training, and in all others (our reading). Boxes of examples are answers here, and turns of the user there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.data.item import Item, kind_of, labels_of
from adapt.data.readers.base import Reader
from adapt.data.split import Split
from adapt.tasks.boxes import BoxLabel

logger = logging.getLogger("adapt")


def read_examples(spec: str, root: str | None = None) -> Split:
    """Return the questions where things are of `N:DATA`, each behind N examples, whose images follow its own.

    Questions about things that fewer than N other pictures of the same part show are left out, and counted. Raises
    AdaptError if N is no number from 1, and for data that are not boxes.
    """
    from adapt.data.readers import load

    number, _, source = spec.partition(":")
    if not number.isdecimal() or not int(number):
        raise AdaptError(f"data 'examples:{spec}': expected the number of examples, from 1, and data with boxes, as in "
                         "examples:2:boxes:coco:FILE")  # fmt: skip
    split = load(source, root)
    parts = {"train": split.train, "val": split.val, "test": split.test}
    every = [item for items in parts.values() for item in items]
    if not all(isinstance(item.label, BoxLabel) for item in every):
        raise AdaptError(f"data {source!r} are {kind_of(every).items_are}; examples are of boxes: give boxes:FILE")
    train, val, test = (tuple(_with_examples(items, int(number), name)) for name, items in parts.items())
    if left_out := len(every) - len(train) - len(val) - len(test):
        logger.info("%s: %d questions are left out, as too few other pictures show their things", source, left_out)
    return replace(split, name=f"examples-{number}-{split.name}", train=train, val=val, test=test)


def _with_examples(items: tuple[Item, ...], count: int, part: str) -> Iterator[Item]:
    """Yield the questions of a part of the data, each behind examples if there are enough."""
    labels = labels_of(items, BoxLabel)
    shown = grouped((label.name, (item.path, label)) for item, label in zip(items, labels) if label.boxes)
    for place, (item, label) in enumerate(zip(items, labels, strict=True)):
        others = [(path, other) for path, other in shown.get(label.name, ()) if path != item.path]
        if len(others) < count:
            continue
        draws = Random(f"{part}/{place}")
        paths, examples = zip(*draws.sample(others, count), strict=True)
        name = label.name if part == "train" and place % 2 else _without_meaning(draws)
        known = tuple((other.boxes, other.size) for other in examples)
        yield replace(item, paths=(item.path, *paths), label=BoxLabel.of(name, label.boxes, label.size, known))


def _without_meaning(draws: Random) -> str:
    return "".join(draws.choice("bdfgklmnprstvz") + draws.choice("aeiou") for _ in range(3))


class Examples(Reader):
    name = "examples"
    takes = "examples:N:DATA, questions where things are behind N examples each, from data with boxes"
    reads = staticmethod(read_examples)
    prefix = "examples:"
    root = "may"
