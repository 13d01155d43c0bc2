"""Causal attention over packed prompts: prefix keys by one product for all classes, suffix keys per length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.engine.packing import Packing


def prefix_suffix_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, heads: int, ends_only: bool) -> Tensor:
    """Attention of packed rows, `(rows, d)` each for `k` and `v`.

    `q` has all rows, or with `ends_only` one end-of-text row a class in packed order. Returns one row per query:
    softmax over the prefix's keys and the class's own up to the query, in one normalisation.
    """
    prefix = packing.prefix
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))  # (h, rows, d/h)
    prefix_rows = []
    if prefix and not ends_only:
        prefix_rows = [F.scaled_dot_product_attention(q[:, :prefix], k[:, :prefix], v[:, :prefix], is_causal=True)]
        q = q[:, prefix:]
    q = q * q.shape[-1] ** -0.5
    to_prefix = q @ k[:, :prefix].transpose(1, 2)  # (h, suffix rows, prefix): one product for all classes
    weights, mixed, at = [], [], 0
    for group in packing.groups:
        n, length = group.classes, group.length
        queries = n if ends_only else n * length
        own = slice(prefix + group.start, prefix + group.start + n * length)
        q_own, k_own, v_own = (x.unflatten(1, (n, -1)) for x in (q[:, at : at + queries], k[:, own], v[:, own]))
        scores = q_own @ k_own.transpose(2, 3)  # (h, n, queries of a class, length)
        if not ends_only and length > 1:
            future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        both = torch.cat([to_prefix[:, at : at + queries].unflatten(1, (n, -1)), scores], dim=-1).softmax(-1)
        weights.append(both[..., :prefix].flatten(1, 2))
        mixed.append((both[..., prefix:] @ v_own).flatten(1, 2))
        at += queries
    suffix_rows = torch.cat(mixed, 1) + torch.cat(weights, 1) @ v[:, :prefix]
    return torch.cat([*prefix_rows, suffix_rows], dim=1).transpose(0, 1).flatten(1)
