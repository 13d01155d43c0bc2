"""Random draws that do not depend on what was drawn before: seeds from names, an epoch's batches, views of an image."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch

from adapt.common.grouping import grouped
from adapt.data.decoding.pictures import turns

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from adapt.backbones.preprocess import Transform


class Draw(NamedTuple):
    """One image to load: its position in the data set and the seed of its augmentation."""

    position: int
    seed: int


def seed_for(*names: object) -> int:
    """Return a 63-bit seed that is derived from `names` and is the same in every process."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


# One thread at a time: the generators are the process's, and two threads would draw from one another's seed.
_turn = threading.RLock()  # views of an image are drawn inside its own draw


def _renew() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)  # a thread that holds it does not exist in a child


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and Python's `random` for the `with` block, then restore their states.

    Only one thread at a time can be in the `with` block.
    """
    with _turn, torch.random.fork_rng(devices=[]):
        state = random.getstate()
        # Not torch.manual_seed, which would also seed the GPUs' generators, while fork_rng restores the CPU's only.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


SORTED_BATCHES = 50  # whose items are sorted together by length


class Epochs:
    """A batch sampler that can start at any batch of any epoch, and yields the batches up to the end of the epoch.

    `entities` has the name of each item's entity. With `together` above 1, up to `together` items of the same entity
    follow each other, so that a batch contains several items of an entity. With `lengths`, the length of each item, the
    items of a batch have similar lengths: shuffled items are sorted by length, 50 batches at a time, and the batches
    are shuffled.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        entities: Sequence[str] = (),
        together: int = 1,
        lengths: Sequence[int] = (),
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.seed, self.drop_last = size, batch_size, shuffle, seed, drop_last
        self.entities, self.together, self.lengths = entities, together, lengths
        self.epoch, self.step = 0, 0

    def __len__(self) -> int:
        """Return the number of batches in a full epoch."""
        full, rest = divmod(self.size, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self._order()
        for step in range(self.step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [Draw(position, seed_for(self.seed, self.epoch, position)) for position in chosen]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(seed_for(self.seed, self.epoch, "order"))
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        if self.lengths:
            return self._by_length(order, generator)
        if self.together == 1:
            return order
        alike = grouped((self.entities[position], position) for position in order)
        rows = [
            own[start : start + self.together] for own in alike.values() for start in range(0, len(own), self.together)
        ]
        return list(
            chain.from_iterable(rows[place] for place in torch.randperm(len(rows), generator=generator).tolist())
        )

    def _by_length(self, order: Sequence[int], generator: torch.Generator) -> list[int]:
        """Return the items of a shuffled `order` in batches of similar lengths; a short batch stays the last."""
        size = self.batch_size
        short = len(order) - len(order) % size  # where it starts
        sorted_items: list[int] = []
        for start in range(0, short, SORTED_BATCHES * size):
            some = order[start : min(start + SORTED_BATCHES * size, short)]
            sorted_items += sorted(some, key=lambda item: self.lengths[item])
        shuffled = torch.randperm(short // size, generator=generator).tolist()
        batches = (sorted_items[size * batch : size * (batch + 1)] for batch in shuffled)
        return [*chain.from_iterable(batches), *order[short:]]


class Views:
    """A transform of an image to `(1 + count, 3, h, w)`: the output of `plain`, then `count` outputs of `random`.

    The random seed of each augmentation by `random` depends only on the image's pixels and the augmentation's number.
    """

    def __init__(self, plain: Transform, random: Transform, count: int) -> None:
        self.plain, self.random, self.count = plain, random, count

    @property
    def turned(self) -> bool:
        """Whether images must be turned upright by their EXIF orientation before this transform."""
        return turns(self.plain)

    def __call__(self, image: Image) -> Tensor:
        views, content = [self.plain(image)], hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        for number in range(self.count):
            with seeded(seed_for(content, image.size, "view", number)):
                views.append(self.random(image))
        return torch.stack(views)
