"""Bags: items of several images of one thing, such as photographs of a product or the slices of a scan.

The word is that of multiple-instance learning. A bag has one label and gets one answer, and is never divided. This
module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.data.item import Item


BagPooling = Literal["features", "logits"]  # what is averaged over the images of a bag


class Bags(NamedTuple):
    """A batch of bags: the `images` of all, `(m, 3, h, w)` or features `(m, e)`, and the `counts` of images `(b,)`."""

    images: Tensor
    counts: Tensor


def bag_of(images: Sequence[Tensor]) -> Bags:
    """Return the images of one item as `Bags`."""
    import torch

    return Bags(torch.stack([*images]), torch.tensor([len(images)]))


def joined(bags: Sequence[Bags]) -> Bags:
    """Return several batches of bags as one."""
    import torch

    return Bags(torch.cat([each.images for each in bags]), torch.cat([each.counts for each in bags]))


def is_bag(item: Item) -> bool:
    """Return whether an item has several images of one thing."""
    return len(item.paths) > 1 and item.task.takes_bags


def has_bags(items: Iterable[Item]) -> bool:
    """Return whether some of the items have several images of one thing."""
    return any(map(is_bag, items))


def singles(items: Sequence[Item]) -> list[Item]:
    """Return the images of all items as items of one image each, with the label of the whole."""
    return [replace(item, paths=(path,), group=item.kept_with) for item in items for path in item.paths]


def largest(items: Sequence[Item]) -> int:
    """Return the number of images of the largest bag, or 1 if there is none."""
    return max((len(item.paths) for item in items if is_bag(item)), default=1)


def sizes(items: Sequence[Item]) -> list[int]:
    """Return the number of images of each item."""
    return [len(item.paths) for item in items]
