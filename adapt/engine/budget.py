"""Division of many classes into chunks, so that encoding the prompts of a chunk fits into a memory budget."""

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
    """Return the number of classes per chunk with which encoding one chunk fits into `budget` bytes of memory.

    All chunks have about the same size. Each class has `own_rows` rows (tokens) of its own, all classes share `prefix`
    rows, and each row attends to at most `length` keys.
    """
    row = activation_bytes(tower, length, len(tower.blocks) if keeps_activations else 1)
    # half the budget, as the allocator keeps about as much again as is in use
    fitting = max(1, int((budget / 2 - prefix * row) / (own_rows * row)))
    parts = math.ceil(classes / fitting)
    return math.ceil(classes / parts)


def activation_bytes(tower: Tower, keys: int, blocks: int) -> int:
    """Return roughly how many bytes of fp32 activations one row (token) keeps for the backward pass of `blocks` blocks.

    The row attends to `keys` keys. The estimate counts the inputs of the norms, q, k, v, the attention output and
    scores, and the hidden layer of the MLP.
    """
    maps = tower.blocks[0].projections
    inner = sum(maps[name].shape[0] for name in ("fc1", "gate", "up") if name in maps)
    return 4 * blocks * (8 * tower.width + 3 * inner + 3 * tower.heads * keys)


def in_parts(parts: Sequence[Chunk], encode: Callable[[Chunk], Tensor], recompute: bool) -> Tensor:
    """Return the features `(..., n, e)` of all classes, by calling `encode` on each chunk of classes in `parts`.

    With `recompute` and more than one chunk, activations are recomputed in the backward pass instead of stored.
    """
    if len(parts) == 1:
        return encode(parts[0])
    if not recompute:
        return torch.cat([encode(part) for part in parts], dim=-2)
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts], dim=-2)
