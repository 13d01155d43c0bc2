"""Self-attention from separate q, k and v projections, for packed prompts and for edits that replace the softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.edits import Attention
from adapt.engine.packing import Group, Packing


def weighted_attention(
    linears: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, heads: int, weights: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return self-attention for `x` `(b, l, d)`; `weights` maps scaled scores `(b, h, l, l)` to attention weights."""
    q, k, v = (linears[letter](x).unflatten(-1, (heads, -1)).transpose(1, 2) for letter in "qkv")
    mixed = weights(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)) @ v
    return linears["out"](mixed.transpose(1, 2).flatten(2))


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
