"""The fast path: the exact class features of a causal text tower, without the work that cannot change them.

Rows after the end of text are never computed, the prefix that all classes share is computed once, classes are packed
by suffix length, and the last block computes end-of-text rows only. Every linear sees all rows as one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import pad_rows
from adapt.backbones.tower import Block, TextParts, Tower
from adapt.edits import Edit, Replace, Tokens
from adapt.engine.attention import prefix_suffix_attention
from adapt.engine.hooks import Linear, edited, frozen, frozen_linear
from adapt.engine.memory import free_bytes
from adapt.engine.packing import Packing, pack
from adapt.prompts import Prompt, shared_prefix

Part = TypeVar("Part")


def reason_against(tower: Tower | None) -> str | None:
    """Why the fast path does not serve `tower`, or None where it does."""
    if tower is None or tower.text is None:
        return "its blocks are not mapped"
    if not tower.form.causal:
        return "it is not causal: every token sees the padding and the tokens after it"
    if tower.form.pooling != "end":
        return f"it pools by {tower.form.pooling!r}, not at the end-of-text token"
    return None


@torch.no_grad()
def agrees(backbone: Backbone, prompts: Sequence[Prompt]) -> bool:
    """Whether both paths give the same features for the shortest and the longest prompt."""
    pair = sorted(prompts, key=lambda prompt: len(prompt.ids))
    pair = [pair[0], pair[-1]] if len(pair) > 1 else pair
    budget = free_bytes(backbone.device)
    plain, fast = (F.normalize(path(backbone, pair)([], budget).float(), dim=-1) for path in (PlainText, FastText))
    exact = backbone.model.logit_scale.dtype == torch.float32 and not torch.is_autocast_enabled()
    return bool((plain - fast).abs().max() < (1e-4 if exact else 2e-2))


def active_dropout(module: nn.Module) -> bool:
    """Whether `module` draws random numbers now."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 and part.training for part in module.modules())


class PlainText:
    """The library's own forward over padded prompts: serves every tower, and is the oracle of the fast path."""

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt], checkpointing: bool = False) -> None:
        self._backbone = backbone
        self._checkpointing = checkpointing
        self._prompts = prompts
        self._ids = pad_rows([list(prompt.ids) for prompt in prompts], backbone.tokenizer)

    def __call__(self, edits: Sequence[Edit], budget: int) -> Tensor:
        """Features `(n, e)` before normalisation, inside about `budget` bytes of activations."""
        keeps = torch.is_grad_enabled() and bool(edits)
        tower = self._backbone.towers.get("text")
        length = self._ids.shape[1]
        size = (
            len(self._prompts)
            if tower is None
            else classes_within(budget, tower, len(self._prompts), length, 0, length, keeps)
        )
        parts = [slice(start, start + size) for start in range(0, len(self._prompts), size)]
        return in_parts(parts, lambda part: self._encode(edits, part), recompute=keeps)

    def _encode(self, edits: Sequence[Edit], part: slice) -> Tensor:
        own = [Tokens(edit.values[part]) if isinstance(edit, Tokens) and edit.per_class else edit for edit in edits]
        tower = self._backbone.towers.get("text")
        checkpointing = self._checkpointing and torch.is_grad_enabled()
        with edited(self._backbone.model, tower, own, self._prompts[part], checkpointing):
            return self._backbone.encode_text(self._ids[part].to(self._backbone.device))


class FastText:
    """Encodes the prompts of one list of classes; packings are made once and reused by every step."""

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt], checkpointing: bool = False) -> None:
        self._model = backbone.model
        self._checkpointing = checkpointing
        self._tower = backbone.tower("text")
        self._prompts = prompts
        self._packings: dict[tuple[int, int, torch.device], list[Packing]] = {}

    def __call__(self, edits: Sequence[Edit], budget: int) -> Tensor:
        """Features `(n, e)` before normalisation, inside about `budget` bytes of activations."""
        tokens = next((edit for edit in edits if isinstance(edit, Tokens)), None)
        replaced = {(edit.block, edit.projection): edit.module for edit in edits if isinstance(edit, Replace)}
        # with dropout, each class draws its own noise on the prefix, as it does on the plain path
        noisy = any(active_dropout(module) for module in replaced.values())
        prefix = 0 if noisy else shared_prefix(self._prompts, per_class=tokens is not None and tokens.per_class)
        keeps = torch.is_grad_enabled() and bool(edits)
        lengths = [len(prompt.ids) for prompt in self._prompts]
        own_rows = sum(lengths) / len(lengths) - prefix
        size = classes_within(budget, self._tower, len(lengths), own_rows, prefix, max(lengths), keeps)
        values = None if tokens is None else tokens.values
        return in_parts(
            self._packed(prefix, size), lambda packing: self._encode(packing, values, replaced), recompute=keeps
        )

    def _packed(self, prefix: int, size: int) -> list[Packing]:
        device = self._tower.text.embedding.weight.device  # type: ignore[union-attr]
        key = (prefix, size, device)
        if key not in self._packings:
            with torch.inference_mode(False):  # what predicting packs, training must be able to use
                self._packings = {
                    key: [  # one entry: a new budget or device replaces the old packings
                        pack(self._prompts[start : start + size], prefix, start, device)
                        for start in range(0, len(self._prompts), size)
                    ]
                }
        return self._packings[key]

    def _encode(self, packing: Packing, values: Tensor | None, replaced: dict[tuple[int, str], nn.Module]) -> Tensor:
        """Features `(n, e)` of one packing; `values` are the learned tokens `(k, d)` or `(n, k, d)`."""
        parts: TextParts = self._tower.text  # type: ignore[assignment]
        with frozen(self._model):
            x = _embed(parts, packing, values)
            for index, block in enumerate(self._tower.blocks):
                linears = {
                    letter: replaced.get((index, letter)) or frozen_linear(projection)
                    for letter, projection in block.projections.items()
                }
                last = index == len(self._tower.blocks) - 1
                x = self._block(partial(_block, block, linears, packing=packing, heads=self._tower.heads, last=last), x)
            return parts.project(parts.final_norm(x))[packing.order]

    def _block(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`block(x)`, computed again in the backward pass where checkpointing is asked for."""
        if not (self._checkpointing and torch.is_grad_enabled() and x.requires_grad):
            return block(x)

        def again(x: Tensor) -> Tensor:
            with frozen(self._model):
                return block(x)

        return checkpoint(again, x, use_reentrant=False)


def classes_within(
    budget: int, tower: Tower, classes: int, own_rows: float, prefix: int, length: int, keeps_activations: bool
) -> int:
    """How many of `classes` to encode at once inside `budget` bytes, in parts of about equal size.

    A class has `own_rows` rows of its own, `prefix` rows are shared, and a row attends to at most `length` keys.
    """
    row = activation_bytes(tower, length, len(tower.blocks) if keeps_activations else 1)
    # half the budget: the allocator holds on to about as much again as is in use at once
    fitting = max(1, int((budget / 2 - prefix * row) / (own_rows * row)))
    parts = math.ceil(classes / fitting)
    return math.ceil(classes / parts)


def activation_bytes(tower: Tower, keys: int, blocks: int) -> int:
    """About what a row that attends to `keys` keys leaves in memory for the backward pass of `blocks` blocks, in fp32.

    The norms' inputs, q, k, v and the attention's result, the inside of the MLP, and the attention's scores.
    """
    inner = tower.blocks[0].projections["fc1"].weight.shape[0]
    return 4 * blocks * (8 * tower.width + 3 * inner + 3 * tower.heads * keys)


def in_parts(parts: Sequence[Part], encode: Callable[[Part], Tensor], recompute: bool) -> Tensor:
    """The parts' features in one tensor; several parts keep no activations but compute again in the backward pass."""
    if len(parts) == 1:
        return encode(parts[0])
    if not recompute:
        return torch.cat([encode(part) for part in parts])
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])


def _embed(parts: TextParts, packing: Packing, values: Tensor | None) -> Tensor:
    """Token embeddings, learned tokens in their places, plus positions: `(rows, d)`."""
    x = parts.embedding(packing.ids)
    if values is not None:
        chosen = values[packing.slot_class, packing.slot_index] if values.ndim == 3 else values[packing.slot_index]
        x = x.index_copy(0, packing.slot_rows, chosen.to(x.dtype))
    return x + parts.positions()[packing.positions].to(x.dtype)


def _block(
    block: Block, linears: dict[str, Linear | nn.Module], x: Tensor, packing: Packing, heads: int, last: bool
) -> Tensor:
    """One block over `(rows, d)`; the last one returns end-of-text rows `(n, d)` only."""
    normed = block.norm1(x)
    queries = normed
    if last:
        x, queries = x[packing.ends], normed[packing.ends]
    q, k, v = linears["q"](queries), linears["k"](normed), linears["v"](normed)
    mixed = prefix_suffix_attention(q, k, v, packing, heads, ends_only=last)
    x = x + block.scale1(linears["out"](mixed))
    return x + block.scale2(linears["fc2"](block.act(linears["fc1"](block.norm2(x)))))
