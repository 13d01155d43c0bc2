"""Learned tokens on the plain path, which hooks insert into the library's forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapt.backbones.tower import Block, Tower
from adapt.edits import Attention, Tokens
from adapt.engine.plan import Plan
from adapt.prompts import Prompt

Change = Callable[[Tensor], Tensor]  # (b, l, d) -> (b, l', d)


@contextmanager
def entered(tower: Tower, planned: Plan, prompts: Sequence[Prompt]) -> Iterator[None]:
    """Insert the learned tokens of `planned` into each forward of `tower` by the library in the `with` block."""
    with ExitStack() as stack:
        for edit in (planned.entering, *planned.overwriting.values()):
            if edit is not None:
                hooks = _text_hook(tower, edit, prompts) if tower.name == "text" else _vision_hooks(tower, edit)
                for handle in hooks:
                    stack.enter_context(handle)
        yield


def _text_hook(tower: Tower, edit: Tokens, prompts: Sequence[Prompt]) -> Iterator[RemovableHandle]:
    """Yield the hook that writes learned tokens, `(k, d)` or by prompt `(n, k, d)`, to their prompt positions."""
    places = [
        (row, position, slot)
        for row, prompt in enumerate(prompts)
        for position, slot in enumerate(prompt.slots)
        if slot is not None
    ]
    rows, positions, slots = (torch.tensor(column, device=edit.values.device) for column in zip(*places))

    def overwrite(x: Tensor) -> Tensor:
        values = edit.values[rows, slots] if edit.per_class else edit.values[slots]
        return x.index_put((rows, positions), values.to(x.dtype))

    if edit.block is None:
        embedding = tower.embedding
        yield embedding.register_forward_hook(lambda module, inputs, output: overwrite(output))
    else:
        yield _before(tower.blocks[edit.block], overwrite)


def _vision_hooks(tower: Tower, edit: Tokens) -> Iterator[RemovableHandle]:
    """Yield hooks that insert learned tokens `(k, d)` or `(b, k, d)` after the patches, at the input or at a block."""
    count = edit.values.shape[-2]

    def appended(x: Tensor) -> Tensor:
        return torch.cat([x, edit.values.to(x.dtype).expand(len(x), -1, -1)], dim=1)

    if edit.block is not None:
        yield _before(tower.blocks[edit.block], lambda x: appended(x[:, :-count]))
        return
    yield _before(tower.blocks[0], appended) if tower.pre_norm is None else _change_input(tower.pre_norm, appended)
    last = tower.blocks[-1]
    cut = oriented(last, lambda x: x[:, :-count])
    yield last.module.register_forward_hook(lambda module, inputs, output: cut(output))


def _before(block: Block, change: Change) -> RemovableHandle:
    return _change_input(block.module, oriented(block, change))


def oriented(block: Block, change: Change) -> Change:
    """Return `change`, a function of tokens `(b, l, d)`, adapted to the layout of `block`, such as `(l, b, d)`."""
    return change if block.batch_first else lambda x: change(x.transpose(0, 1)).transpose(0, 1)


def _change_input(module: nn.Module, change: Change) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]), *inputs[1:]))


def masked(tower: Tower, planned: Plan, prompts: Sequence[Prompt], edit: Attention) -> Callable[[Tensor], Tensor]:
    """Return a function from scores `(b, h, l, l)` to attention weights of `edit`, masked if the tower is causal."""
    if tower.name == "text":
        return partial(_text_weights, edit, prompts, tower.form.causal)
    count = planned.entering.values.shape[-2]  # type: ignore[union-attr]

    def weights(scores: Tensor) -> Tensor:
        learned = torch.arange(scores.shape[-1], device=scores.device) >= scores.shape[-1] - count
        return edit.weights(scores, learned, learned)

    return weights


def _text_weights(edit: Attention, prompts: Sequence[Prompt], causal: bool, scores: Tensor) -> Tensor:
    length = scores.shape[-1]

    def flags(rows: list[list[bool]]) -> Tensor:
        padded = [row + [False] * (length - len(row)) for row in rows]
        return torch.tensor(padded, device=scores.device)[:, None]  # (n, 1, l)

    learned = flags([[slot is not None for slot in prompt.slots] for prompt in prompts])
    if causal:
        hidden = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        if edit.names_seen:
            named = flags([[at in prompt.name for at in range(len(prompt.ids))] for prompt in prompts])
            hidden = hidden & ~(learned[..., :, None] & named[..., None, :])
        scores = scores.masked_fill(hidden, float("-inf"))
    return edit.weights(scores, learned, learned)
