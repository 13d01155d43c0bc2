"""Prompts of many classes as one matrix of rows: the shared prefix once, then the suffixes grouped by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from adapt.prompts import Prompt

FEW_ROWS = 160  # with more, attention to all rows, most of them hidden, takes longer than a product for each group


@dataclass(frozen=True)
class Group:
    """`classes` suffixes of `length` rows each; `start` counts suffix rows, without the prefix."""

    start: int
    classes: int
    length: int


@dataclass(frozen=True)
class Packing:
    """The place of each token of each prompt among the `prefix + sum(suffix lengths)` rows.

    Rows: the prefix, then the suffixes sorted by length. `slot_rows` of them hold learned tokens: slot `slot_index` of
    class `slot_class`; `learned` and `named` say of every row whether it is one, and whether it is part of the class
    name. `ends` are the end-of-text rows in packed order, `order` sorts them back to the classes' order.

    `visible` `(rows, rows)` says which rows each attends to, if there are so few that attending to all is cheap.
    """

    prefix: int
    groups: tuple[Group, ...]
    ids: Tensor
    positions: Tensor
    slot_rows: Tensor
    slot_index: Tensor
    slot_class: Tensor
    learned: Tensor
    named: Tensor
    ends: Tensor
    order: Tensor
    visible: Tensor | None

    @property
    def rows(self) -> int:
        return len(self.ids)


def pack(prompts: Sequence[Prompt], prefix: int, first_class: int, device: torch.device) -> Packing:
    """Pack `prompts`, whose first `prefix` tokens are the same; the first is class `first_class` of the full list."""
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    tokens = [(prompts[0], 0, position) for position in range(prefix)]
    groups: list[Group] = []
    ends: list[int] = []
    for length, members in groupby(by_length, key=lambda i: len(prompts[i].ids) - prefix):
        start, chosen = len(tokens) - prefix, list(members)
        groups.append(Group(start, len(chosen), length))
        for i in chosen:
            tokens.extend((prompts[i], i, prefix + offset) for offset in range(length))
            ends.append(len(tokens) - 1)
    learned = [
        (row, prompt.slots[at], first_class + i)
        for row, (prompt, i, at) in enumerate(tokens)
        if prompt.slots[at] is not None
    ]
    slot_rows, slot_index, slot_class = zip(*learned) if learned else ((), (), ())
    index, flags = (partial(torch.tensor, dtype=dtype, device=device) for dtype in (torch.long, torch.bool))
    order = sorted(range(len(by_length)), key=by_length.__getitem__)
    return Packing(
        prefix=prefix,
        groups=tuple(groups),
        ids=index([prompt.ids[at] for prompt, _, at in tokens]),
        positions=index([at for _, _, at in tokens]),
        slot_rows=index(slot_rows),
        slot_index=index(slot_index),
        slot_class=index(slot_class),
        learned=flags([prompt.slots[at] is not None for prompt, _, at in tokens]),
        named=flags([at in prompt.name for prompt, _, at in tokens]),
        ends=index(ends),
        order=index(order),
        visible=_visible(tokens, prefix, device) if len(tokens) <= FEW_ROWS else None,
    )


def _visible(tokens: Sequence[tuple[Prompt, int, int]], prefix: int, device: torch.device) -> Tensor:
    """Return the rows that each attends to: those before it in the prefix and in its own class, and itself."""
    rows = torch.arange(len(tokens), device=device)
    classes = torch.tensor([i for _, i, _ in tokens], device=device)
    related = (classes[:, None] == classes) | (rows < prefix)
    return related & (rows <= rows[:, None])
