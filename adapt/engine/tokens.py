"""Learned tokens on the plain path, which hooks insert into the library's forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapt.backbones.tower import Block, Tower
from adapt.common.errors import AdaptError
from adapt.edits import Attention, Tokens
from adapt.engine.plan import Plan
from adapt.prompts import Prompt

Change = Callable[[Tensor], Tensor]  # (b, l, d) -> (b, l', d)


@contextmanager
def entered(tower: Tower, planned: Plan, prompts: Sequence[Prompt]) -> Iterator[None]:
    """Insert the learned tokens of `planned` into each forward of `tower` by the library in the `with` block.

    `prompts` have slots for all learned tokens. The outputs of learned tokens are cut off behind the last block.
    """
    with ExitStack() as stack:
        for edit in (planned.entering, *planned.overwriting.values()):
            if edit is not None:
                hook = _text_hook(tower, edit, prompts) if tower.name == "text" else _vision_hook(tower, edit)
                stack.enter_context(hook)
        if planned.entering is not None and (tower.name != "text" or planned.entering.block is not None):
            last = tower.blocks[-1]
            change = oriented(last, partial(_without_learned, tower, planned))
            stack.enter_context(last.module.register_forward_hook(lambda module, inputs, output: change(output)))
        yield


def _text_hook(tower: Tower, edit: Tokens, prompts: Sequence[Prompt]) -> RemovableHandle:
    """Register the hook that writes learned tokens, `(k, d)` or by prompt `(n, k, d)`, to their prompt positions."""
    places = [
        (row, position, slot)
        for row, prompt in enumerate(prompts)
        for position, slot in enumerate(prompt.slots)
        if slot is not None
    ]
    rows, positions, slots = (torch.tensor(column, device=edit.values.device) for column in zip(*places))

    def overwrite(x: Tensor) -> Tensor:
        values = (edit.values[rows, slots] if edit.per_class else edit.values[slots]).to(x.dtype)
        return x.index_put((rows, positions), edit.over(x[rows, positions], values))

    if edit.block is None:
        return tower.embedding.register_forward_hook(lambda module, inputs, output: overwrite(output))
    if edit.enters:
        count = edit.values.shape[-2]
        assert tower.text is not None
        longest, length = max(len(prompt.ids) for prompt in prompts), len(tower.text.positions())
        if longest > length:  # than the library's forward computes
            raise AdaptError(
                f"a prompt has {longest - count} tokens, but {count} of the {length} tokens that the text tower's own "
                "forward computes are learned: shorten the class name, learn fewer tokens, or leave fast out"
            )
        # the length stays, so that the library's mask fits; the last tokens, which are padding, are dropped
        room = lambda x: torch.cat([x[:, :1], x[:, :count], x[:, 1:-count]], dim=1)  # noqa: E731
        return _before(tower.blocks[edit.block], lambda x: overwrite(room(x)))
    return _before(tower.blocks[edit.block], overwrite)


def _without_learned(tower: Tower, planned: Plan, x: Tensor) -> Tensor:
    """Return the last block's output `(b, l, d)` without the learned tokens, whose outputs `planned` may read."""
    count = planned.learned
    if tower.name == "text":  # padding, whose values do not matter, was dropped for them
        return torch.cat([x[:, :1], x[:, 1 + count :], x[:, -count:]], dim=1)
    if planned.outputs is not None:
        assert tower.final_norm is not None
        planned.outputs(tower.final_norm(x[:, -count:]))
    return x[:, :-count]


def _vision_hook(tower: Tower, edit: Tokens) -> RemovableHandle:
    """Register the hook that puts learned tokens `(k, d)` or `(b, k, d)` behind the patches."""
    if edit.block is None and tower.pre_norm is not None:
        return _change_input(tower.pre_norm, partial(appended, edit))
    change = appended if edit.block is None or edit.enters else overwritten
    return _before(tower.blocks[edit.block or 0], partial(change, edit))


def appended(edit: Tokens, x: Tensor) -> Tensor:
    """Return tokens `x` `(b, l, d)` with the learned tokens of an edit, `(k, d)` or `(b, k, d)`, behind them."""
    return torch.cat([x, edit.values.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)


def overwritten(edit: Tokens, x: Tensor) -> Tensor:
    """Return tokens `x` `(b, l, d)`, the last k of which the learned tokens of an edit replace."""
    count, values = edit.values.shape[-2], edit.values.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat([x[:, :-count], edit.over(x[:, -count:], values)], dim=1)


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

    def weights(scores: Tensor) -> Tensor:
        learned = torch.arange(scores.shape[-1], device=scores.device) >= scores.shape[-1] - planned.learned
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
