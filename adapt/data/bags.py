"""Bags: items of several images of one thing, such as photographs of a product or the slices of a scan.

The word is that of multiple-instance learning. A bag has one label and gets one answer, and is never divided. In a
batch, the images of each bag stand one after another without padding. This module does not import torch by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.data.item import Item


BagPooling = Literal["features", "logits"]  # what is averaged over the images of a bag


class Bags(NamedTuple):
    """A batch of bags: the `images` of all, `(m, 3, h, w)` or features `(m, e)`, and the `counts` of images `(b,)`.

    `view_names` are the names of the images' views, such as front and side, if they have names.
    """

    images: Tensor
    counts: Tensor
    view_names: tuple[str, ...] = ()


def bag_of(images: Sequence[Tensor], view_names: tuple[str, ...] = ()) -> Bags:
    """Return the images of one item as `Bags`."""
    import torch

    return Bags(torch.stack([*images]), torch.tensor([len(images)]), view_names)


def joined(bags: Sequence[Bags]) -> Bags:
    """Return several batches of bags as one."""
    import torch

    images, counts, names = zip(*bags, strict=True)
    return Bags(torch.cat(images), torch.cat(counts), tuple(chain(*names)))


def is_bag(item: Item) -> bool:
    """Return whether an item has several images of one thing."""
    return len(item.paths) > 1 and item.task.takes_bags


def has_bags(items: Iterable[Item]) -> bool:
    """Return whether some of the items have several images of one thing."""
    return any(map(is_bag, items))


def singles(items: Sequence[Item]) -> list[Item]:
    """Return the images of all items as items of one image each, with the label of the whole."""
    return [replace(item, paths=(path,), group=item.kept_with, view_names=()) for item in items for path in item.paths]


def views_of(items: Iterable[Item]) -> Iterator[tuple[str, str]]:
    """Yield the path of each image with the name of its view, or ""."""
    return chain.from_iterable(zip_longest(item.paths, item.view_names, fillvalue="") for item in items)


def largest(items: Sequence[Item]) -> int:
    """Return the number of images of the largest bag, or 1 if there is none."""
    return max((len(item.paths) for item in items if is_bag(item)), default=1)


def sizes(items: Sequence[Item]) -> list[int]:
    """Return the number of images of each item."""
    return [len(item.paths) for item in items]


def rows_of(counts: Tensor) -> Tensor:
    """Return the number of its bag for each image `(m,)`, from the counts of images `(b,)`."""
    import torch

    return torch.arange(counts.shape[0], device=counts.device).repeat_interleave(counts)


def bag_sum(values: Tensor, counts: Tensor) -> Tensor:
    """Return the sums `(b, ...)` over the images of each bag of `values` `(m, ...)`."""
    sums = values.new_zeros(counts.shape[0], *values.shape[1:])
    return sums.index_add(0, rows_of(counts), values)


def bag_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the means `(b, ...)` over the images of each bag of `values` `(m, ...)`."""
    return bag_sum(values, counts) / counts.to(values.dtype).view(-1, *[1] * (values.ndim - 1))


def bag_softmax(scores: Tensor, counts: Tensor) -> Tensor:
    """Return `scores` `(m,)` as weights `(m,)` that sum to 1 over the images of each bag."""
    rows = rows_of(counts)
    largest = scores.new_full(counts.shape, float("-inf")).scatter_reduce(0, rows, scores.detach(), "amax")
    weights = (scores - largest[rows]).exp()
    return weights / bag_sum(weights, counts)[rows]
