"""Packing of many classes' prompts into one sequence: the shared prefix once, then all suffixes sorted by length."""

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
    """A group of `classes` packed suffixes with `length` tokens each, which begins at row `start` after the prefix."""

    start: int
    classes: int
    length: int


@dataclass(frozen=True)
class Packing:
    """The layout of many prompts packed into one sequence of `prefix + sum(suffix lengths)` rows, one token each.

    The prefix comes first, then the suffixes sorted by length. `slot_rows` are the rows with learned tokens; row
    `slot_rows[i]` has token `slot_index[i]` of class `slot_class[i]`. The flags `learned` and `named` mark the rows
    that have a learned token, or belong to the class name. `ends` are the end-of-text rows in packed order, and
    indexing with `order` restores the order of the classes.

    `hidden` `(rows, rows)` is added to the scores of all rows: -inf for a key that a query does not see, else 0. It is
    None if there are so many rows that attention to all of them would be slow.
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
    hidden: Tensor | None

    @property
    def rows(self) -> int:
        return len(self.ids)


def pack(prompts: Sequence[Prompt], prefix: int, first_class: int, device: torch.device) -> Packing:
    """Return the packed layout of `prompts` with `prefix` equal first tokens, for classes from `first_class` on."""
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
        hidden=_hidden(tokens, prefix, device) if len(tokens) <= FEW_ROWS else None,
    )


def _hidden(tokens: Sequence[tuple[Prompt, int, int]], prefix: int, device: torch.device) -> Tensor:
    """Return the mask `(rows, rows)` for causal attention of packed rows to the prefix and their own class."""
    rows = torch.arange(len(tokens), device=device)
    classes = torch.tensor([i for _, i, _ in tokens], device=device)
    related = (classes[:, None] == classes) | (rows < prefix)
    seen = related & (rows <= rows[:, None])
    return torch.zeros(seen.shape, dtype=torch.float32, device=device).masked_fill(~seen, float("-inf"))
