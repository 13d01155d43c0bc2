"""A batch sampler whose batches depend only on the seed, the epoch and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from adapt.data.decoding.draws import Draw, seed_for

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
        alike: dict[str, list[int]] = {}
        for position in order:
            alike.setdefault(self.entities[position], []).append(position)
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
