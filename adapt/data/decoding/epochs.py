"""A batch sampler whose batches depend only on the seed, the epoch and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from adapt.data.decoding.draws import Draw, seed_for


class Epochs:
    """A batch sampler that can start at any batch of any epoch, and yields the batches up to the end of the epoch.

    `entities` has the name of each item's entity. With `together` above 1, up to `together` items of the same entity
    follow each other, so that a batch contains several items of an entity.
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
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.seed, self.drop_last = size, batch_size, shuffle, seed, drop_last
        self.entities, self.together = entities, together
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
