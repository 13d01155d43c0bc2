"""The fast path for class prompts: exact text features by a causal text tower, without redundant work.

Tokens after the end of text are not computed. The prefix that all classes share is computed once. Classes are packed by
suffix length, and the last block computes only end-of-text tokens. Every linear sees all tokens as one matrix. Many
classes are divided into parts, so that encoding the prompts of one part fits into a memory budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapt.backbones.base import DualEncoder
from adapt.backbones.locks import frozen
from adapt.backbones.tokenizer import pad_rows
from adapt.backbones.tower import Block, TextParts, Tower, check_parts
from adapt.common.devices import free_bytes
from adapt.edits import Edit, Tokens
from adapt.engine.attention import Packing, pack, prefix_suffix_attention
from adapt.engine.blocks import again_in_backward, bypassing_absent, run_block, same_features
from adapt.engine.hooks import run
from adapt.engine.plan import Plan, plan
from adapt.prompts import Prompt, shared_prefix

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


def reason_against(tower: Tower | None) -> str | None:
    """Return why the fast path (packed prompts) does not support the text tower `tower`, or None if it does."""
    if tower is None or tower.text is None:
        return "its blocks are not mapped"
    if not tower.form.causal:
        return "it is not causal: every token sees the padding and the tokens after it"
    if tower.form.pooling != "end":
        return f"it pools by {tower.form.pooling!r}, not at the end-of-text token"
    return None


@torch.no_grad()
def agrees(backbone: DualEncoder, prompts: Sequence[Prompt]) -> bool:
    """Return whether `FastText` and `PlainText` give the same features for the shortest and the longest prompt."""
    if backbone.device.type == "meta":
        return True  # an outline has no values to compare
    pair = sorted(prompts, key=lambda prompt: len(prompt.ids))
    pair = [pair[0], pair[-1]] if len(pair) > 1 else pair
    budget, absent = free_bytes(backbone.device), bypassing_absent(backbone.tower("text"))
    plain, fast = (path(backbone, pair)(absent, budget) for path in (PlainText, FastText))
    return same_features(backbone, backbone.tower("text"), plain, fast)


def active_dropout(module: nn.Module) -> bool:
    """Return whether `module` currently applies dropout, which makes its outputs random."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 and part.training for part in module.modules())


@dataclass(eq=False)
class PlainText:
    """An encoder of class prompts by the library's own forward, which works for every text tower.

    The results of `FastText` are checked against the results of this encoder.
    """

    backbone: DualEncoder
    prompts: Sequence[Prompt]
    checkpointing: bool = False

    @cached_property
    def _ids(self) -> Tensor:
        with torch.inference_mode(False):  # training must be able to use what prediction has padded
            return pad_rows([list(prompt.ids) for prompt in self.prompts], self.backbone.tokenizer)

    def __call__(self, edits: Sequence[Edit], budget: int) -> Tensor:
        """Return the text features of all prompts before normalisation, using about `budget` bytes for activations.

        Features are `(n, e)`. If the learned tokens differ between `b` images, features are `(b, n, e)`, and the
        prompts are encoded for one image after the other.
        """
        images = plan(self.backbone.towers.get("text"), edits).images
        if images is None:
            return self._of_all(edits, budget)
        share = budget // images if torch.is_grad_enabled() else budget  # the activations of all images add up
        return torch.stack([self._of_all(_of_image(edits, i), share) for i in range(images)])

    def _of_all(self, edits: Sequence[Edit], budget: int) -> Tensor:
        keeps = torch.is_grad_enabled() and bool(edits)
        tower = self.backbone.towers.get("text")
        size, length = len(self.prompts), self._ids.shape[1]
        if tower is not None:
            size = classes_within(budget, tower, size, length, 0, length, keeps)
        parts = [slice(start, start + size) for start in range(0, len(self.prompts), size)]
        return in_parts(parts, lambda part: self._encode(edits, part), recompute=keeps)

    def _encode(self, edits: Sequence[Edit], part: slice) -> Tensor:
        own = [
            replace(edit, values=edit.values[part]) if isinstance(edit, Tokens) and edit.per_class else edit
            for edit in edits
        ]
        ids = self._ids[part].to(self.backbone.device)
        if not own:
            with frozen(self.backbone.model):
                return self.backbone.encode_text(ids)
        return run(
            self.backbone.model,
            [(self.backbone.tower("text"), own)],
            lambda: self.backbone.encode_text(ids),
            prompts=self.prompts[part],
            checkpointing=self.checkpointing and torch.is_grad_enabled(),
        )


def _of_image(edits: Sequence[Edit], image: int) -> list[Edit]:
    """Return `edits` with the learned tokens of image number `image` only: `(k, d)`, or by class `(n, k, d)`."""
    return [
        replace(edit, values=edit.values[image] if edit.per_class else edit.values[image, 0])
        if isinstance(edit, Tokens) and edit.per_image
        else edit
        for edit in edits
    ]


_Packed = tuple[Packing, Packing]  # at the tower's input, and from the block on at which learned tokens enter


@dataclass(eq=False)
class FastText:
    """A fast encoder for the prompts of a fixed list of classes, which packs the prompts once for all calls."""

    backbone: DualEncoder
    prompts: Sequence[Prompt]
    checkpointing: bool = False
    _packings: dict[tuple[int, int, torch.device, int], list[_Packed]] = field(default_factory=dict, init=False)

    def __call__(self, edits: Sequence[Edit], budget: int) -> Tensor:
        """Return the text features of all prompts before normalisation, using about `budget` bytes for activations.

        Features are `(n, e)`, or `(b, n, e)` if the learned tokens differ between `b` images.
        """
        tower = self.backbone.tower("text")  # looked up anew: blocks may have been cut out of it
        planned = plan(tower, edits)
        prompts = planned.with_slots(self.prompts)
        # with dropout, each class draws its own noise on the prefix, as it does on the plain path
        noisy = any(active_dropout(module) for module in planned.modules)
        prefix = 0 if noisy else shared_prefix(prompts, planned.prefix_per_class)
        keeps = torch.is_grad_enabled() and bool(edits)
        lengths = [len(prompt.ids) for prompt in prompts]
        images = planned.images or 1
        own_rows = images * (sum(lengths) / len(lengths) - prefix)
        size = classes_within(budget, tower, len(lengths), own_rows, images * prefix, max(lengths), keeps)
        return in_parts(
            self._packed(prompts, prefix, size), lambda packed: self._encode(tower, packed, planned), recompute=keeps
        )

    def _packed(self, prompts: Sequence[Prompt], prefix: int, size: int) -> list[_Packed]:
        """Return the packings of the encoder's own prompts, and of `prompts`, which may have slots in addition."""
        device, added = self.backbone.device, len(prompts[0].ids) - len(self.prompts[0].ids)
        key = (prefix, size, device, added)
        packings = self._packings.get(key)
        if packings is None:
            with torch.inference_mode(False):  # training must be able to use what prediction has packed
                wider = _in_chunks(prompts, prefix, size, device)
                # slots that classes share are in the prefix, behind the first token
                own = (
                    _in_chunks(self.prompts, prefix - added if prefix > 1 else prefix, size, device) if added else wider
                )
            packings = [*zip(own, wider, strict=True)]
            self._packings = {key: packings}  # one entry: a new budget or device replaces the old packings
        return packings

    def _encode(self, tower: Tower, packed: _Packed, planned: Plan) -> Tensor:
        """Return the text features `([b,] n, e)` of the classes whose prompts are packed together in `packed`."""
        packing, with_slots = packed
        parts: TextParts = tower.text  # type: ignore[assignment]
        with frozen(self.backbone.model):
            check_parts(tower, self.backbone.model)
            x = parts.embedding(packing.ids)
            x = x.to(tower.dtype or x.dtype)  # as in open_clip, if only the blocks have low precision
            if (entering := planned.entering_at(None)) is not None:
                x = _placed(x, entering, packing)
            x = x + parts.positions()[packing.positions].to(x.dtype)
            for index, block in enumerate(tower.blocks):
                if (entering := planned.entering_at(index)) is not None:
                    packing = with_slots
                    wider = x.new_zeros(*x.shape[:-2], packing.rows, x.shape[-1])
                    x = _placed(wider.masked_scatter(~packing.learned[:, None], x), entering, packing)
                if index in planned.overwriting:
                    x = _placed(x, planned.overwriting[index], packing)
                last = index == len(tower.blocks) - 1
                if index in planned.bypassed:
                    x = planned.bypassed[index](x[..., packing.ends, :] if last else x)
                else:
                    x = self._block(block, index, planned, packing, tower.heads, last, x)
            norm = planned.outer.get("final_norm", parts.final_norm)
            return planned.outer.get("projection", parts.project)(norm(x))[..., packing.order, :]

    def _block(
        self, block: Block, index: int, planned: Plan, packing: Packing, heads: int, last: bool, x: Tensor
    ) -> Tensor:
        """Return the block's output `(..., rows, d)`, or for the last block only end-of-text rows `(..., n, d)`."""
        attend = partial(
            prefix_suffix_attention, packing=packing, heads=heads, ends_only=last, edit=planned.attention.get(index)
        )
        compute = partial(run_block, block, index, planned, attend=attend, rows=packing.ends if last else None)
        return again_in_backward(self.backbone.model, compute, x) if self.checkpointing else compute(x)


def _in_chunks(prompts: Sequence[Prompt], prefix: int, size: int, device: torch.device) -> list[Packing]:
    """Return packings of `size` prompts each, whose first `prefix` tokens are equal."""
    starts = range(0, len(prompts), size)
    return [pack(prompts[start : start + size], prefix, start, device) for start in starts]


def _placed(x: Tensor, edit: Tokens, packing: Packing) -> Tensor:
    """Return the hidden states `x` `([b,] rows, d)` of packed prompts, with learned tokens written into their rows."""
    values = edit.values if edit.values.ndim > 2 else edit.values[None]
    chosen = values[..., packing.slot_class if edit.per_class else 0, packing.slot_index, :]
    if edit.per_image:
        x = x.expand(len(values), *x.shape[-2:])
    chosen = chosen.to(x.dtype).expand(*x.shape[:-2], *chosen.shape[-2:])
    if edit.share < 1:
        chosen = edit.over(x[..., packing.slot_rows, :], chosen)
    return x.index_copy(-2, packing.slot_rows, chosen)
