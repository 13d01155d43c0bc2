"""Classes in parts: how many fit into a memory budget, and parts that recompute instead of keeping activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adapt.backbones.tower import Tower

Chunk = TypeVar("Chunk")


def classes_within(
    budget: int, tower: Tower, classes: int, own_rows: float, prefix: int, length: int, keeps_activations: bool
) -> int:
    """Return how many of `classes` to encode at once inside `budget` bytes, in parts of about equal size.

    A class has `own_rows` rows of its own, `prefix` rows are shared, and a row attends to at most `length` keys.
    """
    row = activation_bytes(tower, length, len(tower.blocks) if keeps_activations else 1)
    # half the budget, as the allocator keeps about as much again as is in use
    fitting = max(1, int((budget / 2 - prefix * row) / (own_rows * row)))
    parts = math.ceil(classes / fitting)
    return math.ceil(classes / parts)


def activation_bytes(tower: Tower, keys: int, blocks: int) -> int:
    """Return about how many bytes a row leaves in memory for the backward pass of `blocks` blocks, in fp32.

    The row attends to `keys` keys. Counted are the norms' inputs, q, k, v and the attention's result, the inside of the
    MLP, and the attention's scores.
    """
    inner = tower.blocks[0].projections["fc1"].weight.shape[0]
    return 4 * blocks * (8 * tower.width + 3 * inner + 3 * tower.heads * keys)


def in_parts(parts: Sequence[Chunk], encode: Callable[[Chunk], Tensor], recompute: bool) -> Tensor:
    """Return the parts' features `(..., n, e)` in one tensor.

    With `recompute`, several parts keep no activations but compute again in the backward pass.
    """
    if len(parts) == 1:
        return encode(parts[0])
    if not recompute:
        return torch.cat([encode(part) for part in parts], dim=-2)
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts], dim=-2)
