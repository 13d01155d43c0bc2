"""Questions where a thing is, each after N examples of it in other pictures: `examples:N:DATA`.

Doveh et al., Teaching VLMs to Localize Specific Objects from In-context Examples (IPLoc, 2411.13317); reference
SivanDoveh/IPLoc `27682bc`, without code for training. Its examples are frames of the same video; these are other
pictures of the same part of the data that show things of the same name. Its names are replaced in a share of the
conversations, by words that say nothing of the thing, so that a model must look at the examples: here in half of those
of training, and in all others (our reading). Boxes of examples are answers here, and turns of the user there.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from random import Random
from typing import Any

from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.data.item import Item, kind_of
from adapt.data.readers.base import Reader
from adapt.data.split import Split

logger = logging.getLogger("adapt")


def read_examples(spec: str, root: str | None = None) -> Split:
    """Return the questions where things are of `N:DATA`, each after N examples, whose paths follow the item's own.

    Questions about things that fewer than N other pictures of the same part show are left out, and counted. Raises
    AdaptError if N is no number from 1, and for data that are not boxes.
    """
    from adapt.data.readers import load

    number, _, source = spec.partition(":")
    if not number.isdecimal() or not int(number):
        form = "examples:2:boxes:coco:FILE"
        raise AdaptError(f"data 'examples:{spec}': expected a number of examples, from 1, and boxes, such as {form!r}")
    split = load(source, root)
    every = list(split.items())
    if "boxes" not in kind_of(every).needs:
        raise AdaptError(f"data {source!r} are {kind_of(every).items_are}; examples are of boxes: give boxes:FILE")
    named = {"train": 0.5, "val": 0, "test": 0}
    train, val, test = (_after_examples(part, getattr(split, part), int(number), each) for part, each in named.items())
    if not train and not test:
        raise AdaptError(f"data {source!r}: fewer than {number} other pictures show each thing: ask for fewer examples")
    if left_out := len(every) - len(train) - len(val) - len(test):
        logger.info("%s: %d questions are left out, as too few other pictures show their things", source, left_out)
    return replace(split, name=f"examples-{number}-{split.name}", train=train, val=val, test=test)


def _after_examples(part: str, items: tuple[Item, ...], count: int, named: float) -> tuple[Item, ...]:
    """Return the questions of a part that have `count` examples, each after its own; a share keep their names."""
    labels: list[Any] = [item.label for item in items]
    shown = grouped((label.name, (item.path, label)) for item, label in zip(items, labels) if label.boxes)
    asked = []
    for place, (item, label) in enumerate(zip(items, labels, strict=True)):
        others = [(path, other) for path, other in shown.get(label.name, ()) if path != item.path]
        if len(others) < count:
            continue
        draws = Random(f"{part}/{place}")  # each part draws its own names
        paths, examples = zip(*draws.sample(others, count), strict=True)
        known = ((other.boxes, other.size) for other in examples)
        unknown = "".join(draws.choice("bdfgklmnprstvz") + draws.choice("aeiou") for _ in range(3))
        name = label.name if draws.random() < named else unknown
        chat: Any = Item.of(path=item.path, boxes=(name, label.boxes, label.size, label.crowds, *known))
        asked.append(replace(item, paths=(item.path, *paths), label=replace(chat.label, thing=label.name)))
    return tuple(asked)


class Examples(Reader):
    name = "examples"
    takes = "examples:N:DATA, questions where things are, each after N examples of the thing"
    reads = staticmethod(read_examples)
    prefix = "examples:"
    root = "may"
