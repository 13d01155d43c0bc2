"""Packing of many classes' prompts into one sequence, and its self-attention.

The prefix that all classes share comes once, then all suffixes sorted by length. An edit may replace the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.edits import Attention
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
        hidden=_causal_mask(tokens, prefix, device) if len(tokens) <= FEW_ROWS else None,
    )


def _causal_mask(tokens: Sequence[tuple[Prompt, int, int]], prefix: int, device: torch.device) -> Tensor:
    """Return the mask `(rows, rows)` for causal attention of packed rows to the prefix and their own class."""
    rows = torch.arange(len(tokens), device=device)
    classes = torch.tensor([i for _, i, _ in tokens], device=device)
    related = (classes[:, None] == classes) | (rows < prefix)
    seen = related & (rows <= rows[:, None])
    return torch.zeros(seen.shape, dtype=torch.float32, device=device).masked_fill(~seen, float("-inf"))


def prefix_suffix_attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, heads: int, ends_only: bool, edit: Attention | None = None
) -> Tensor:
    """Return causal self-attention over packed prompts, which have one shared prefix and a suffix for each class.

    `k` and `v` are `(..., rows, d)`, with images as leading dimensions. `q` has all rows, or with `ends_only` only the
    end-of-text row of each class, in packed order. Each query attends to the prefix and to the suffix of the query's
    class, up to the query. The attention weights are computed by `edit` if given, or else by softmax. The output has
    one row for each query.
    """
    prefix = packing.prefix
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))  # (..., h, rows, d/h)
    if edit is None and packing.hidden is not None:
        others = packing.hidden[packing.ends] if ends_only else packing.hidden  # rows of other classes
        return _attention_to_all(q, k, v, others).transpose(-3, -2).flatten(-2)
    q = q * q.shape[-1] ** -0.5
    prefix_rows = []
    if prefix and not ends_only:
        q_own, k_own, v_own = (x[..., :prefix, :] for x in (q, k, v))
        prefix_rows = [_prefix_attention(q_own, k_own, v_own, packing, edit)]
        q = q[..., prefix:, :]
    to_prefix = q @ k[..., :prefix, :].transpose(-1, -2)  # (..., h, suffix rows, prefix): one product for all classes
    weights, mixed, at = [], [], 0
    for group in packing.groups:
        n, length = group.classes, group.length
        queries = n if ends_only else n * length
        own = slice(prefix + group.start, prefix + group.start + n * length)
        q_own, k_own, v_own = (
            x.unflatten(-2, (n, -1)) for x in (q[..., at : at + queries, :], k[..., own, :], v[..., own, :])
        )
        scores = q_own @ k_own.transpose(-1, -2)  # (..., h, n, queries of a class, length)
        hidden = _hidden(packing, group, own, edit, ends_only)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        both = torch.cat([to_prefix[..., at : at + queries, :].unflatten(-2, (n, -1)), scores], dim=-1)
        both = _weights(both, packing, own, n, edit, ends_only)
        weights.append(both[..., :prefix].flatten(-3, -2))
        mixed.append((both[..., prefix:] @ v_own).flatten(-3, -2))
        at += queries
    suffix_rows = torch.cat(mixed, -2) + torch.cat(weights, -2) @ v[..., :prefix, :]
    return torch.cat([*prefix_rows, suffix_rows], dim=-2).transpose(-3, -2).flatten(-2)


def _attention_to_all(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Return attention of packed rows `(..., h, rows, d/h)`, to whose scores `hidden` is added."""
    if q.ndim > 3 or q.dtype != torch.float32 or torch.is_autocast_enabled(q.device.type):
        return F.scaled_dot_product_attention(q, k, v, hidden.to(q.dtype))
    # without images torch has no kernel, and takes these steps and some for queries that see nothing, to the same bits
    root = math.sqrt(1 / math.sqrt(q.shape[-1]))
    return (((q * root) @ (k * root).transpose(-1, -2)) + hidden).softmax(-1) @ v


def _prefix_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, edit: Attention | None) -> Tensor:
    """Return causal self-attention in the shared prefix `(..., h, prefix, d/h)`; `q` must already be scaled."""
    if edit is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    future = torch.ones(packing.prefix, packing.prefix, dtype=torch.bool, device=q.device).triu(1)
    learned = packing.learned[: packing.prefix]
    return edit.weights((q @ k.transpose(-1, -2)).masked_fill(future, float("-inf")), learned, learned) @ v


def _hidden(packing: Packing, group: Group, own: slice, edit: Attention | None, ends_only: bool) -> Tensor | None:
    """Return the bool mask `([n,] length, length)` of keys hidden from queries of the same class; None for no mask."""
    if ends_only or group.length == 1:
        return None
    future = torch.ones(group.length, group.length, dtype=torch.bool, device=packing.ids.device).triu(1)
    if edit is None or not edit.names_seen:
        return future
    learned, named = (flags[own].unflatten(0, (group.classes, -1)) for flags in (packing.learned, packing.named))
    return future & ~(learned[:, :, None] & named[:, None, :])


def _weights(
    scores: Tensor, packing: Packing, own: slice, classes: int, edit: Attention | None, ends_only: bool
) -> Tensor:
    """Return attention weights for scores `(..., n, queries, prefix + length)`, by `edit` or, if None, by softmax."""
    if edit is None:
        return scores.softmax(-1)
    learned = packing.learned[own].unflatten(0, (classes, -1))  # (n, length)
    prefix = packing.learned[: packing.prefix].expand(classes, -1)
    return edit.weights(scores, learned[:, -1:] if ends_only else learned, torch.cat([prefix, learned], dim=-1))
