"""The plain path: the library's own forward, with edits that act only inside one call.

A replaced projection is an instance attribute `forward` that lives for the call; learned tokens enter through a forward
hook on the token embedding. Both are gone when the call returns, and a checkpointed block brings its own back when it
is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapt.backbones.split import attend
from adapt.backbones.tower import Block, Projection, Tower
from adapt.edits import Edit, Replace, Tokens
from adapt.prompts import Prompt

Linear = Callable[[Tensor], Tensor]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient for any parameter, no checkpointing by the library; all as before afterwards."""
    training = [module for module in model.modules() if module.training]
    checkpointing = [module for module in model.modules() if getattr(module, "grad_checkpointing", False)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for module in checkpointing:
            module.grad_checkpointing = False  # type: ignore[assignment]
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for module in checkpointing:
            module.grad_checkpointing = True  # type: ignore[assignment]
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def edited(
    model: nn.Module,
    tower: Tower | None,
    edits: Sequence[Edit],
    prompts: Sequence[Prompt] = (),
    checkpointing: bool = False,
) -> Iterator[None]:
    """Inside, the library's forward of `model` computes what `edits` ask of `tower`.

    `prompts` say where learned tokens stand in each row; `checkpointing` recomputes every block in the backward pass.
    """
    with ExitStack() as stack:
        stack.enter_context(_inside_blocks(model, tower, edits))
        for edit in edits:
            if isinstance(edit, Tokens):
                stack.enter_context(_tokens(tower.text.embedding, edit, prompts))  # type: ignore[union-attr]
        if checkpointing and tower is not None:
            for block in tower.blocks:
                stack.enter_context(_checkpointed(block.module, partial(_inside_blocks, model, tower, edits)))
        yield


@contextmanager
def _inside_blocks(model: nn.Module, tower: Tower | None, edits: Sequence[Edit]) -> Iterator[None]:
    """What must hold while a block computes, the first time and again: a frozen model and replaced projections."""
    replaced: dict[int, dict[str, nn.Module]] = {}
    for edit in edits:
        if isinstance(edit, Replace):
            replaced.setdefault(edit.block, {})[edit.projection] = edit.module
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        for index, modules in replaced.items():
            for module, forward in _forwards(tower.blocks[index], modules):  # type: ignore[union-attr]
                stack.enter_context(_forward_as(module, forward))
        yield


@contextmanager
def _forward_as(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    missing = object()
    before = module.__dict__.get("forward", missing)
    module.forward = forward
    try:
        yield
    finally:
        if before is missing:
            del module.forward
        else:
            module.forward = before


def _forwards(block: Block, modules: dict[str, nn.Module]) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Which modules of `block` compute differently, and how, when `modules` stand for its projections."""
    linears = {
        letter: modules.get(letter, frozen_linear(projection)) for letter, projection in block.projections.items()
    }
    attn: Any = block.attn
    fused_attention = isinstance(attn, nn.MultiheadAttention)
    if fused_attention and modules.keys() & {"q", "k", "v", "out"}:
        # nn.MultiheadAttention never calls its projections: the whole attention has to be computed from the parts
        yield attn, partial(_split_attention, attn, linears)
    owners = {id(block.projections[letter].module): block.projections[letter].module for letter in modules}
    for owner in owners.values():
        if fused_attention and (owner is attn or owner is attn.out_proj):
            continue
        shared = [letter for letter, projection in block.projections.items() if projection.module is owner]
        yield owner, partial(_side_by_side, [linears[letter] for letter in shared])


def frozen_linear(projection: Projection) -> Linear:
    """The frozen projection as a function `(..., in) -> (..., out)`."""
    return partial(F.linear, weight=projection.weight, bias=projection.bias)


def _side_by_side(linears: Sequence[Linear], x: Tensor) -> Tensor:
    """`(..., in) -> (..., sum of out)`: what a fused linear computes, from its parts in the order of their rows."""
    outputs = [linear(x) for linear in linears]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _split_attention(
    attn: nn.MultiheadAttention,
    linears: dict[str, Linear],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool = False,
    attn_mask: Tensor | None = None,
) -> tuple[Tensor, None]:
    """`nn.MultiheadAttention`'s forward over separate projections, with None for its weights."""
    return attend(linears, attn.num_heads, attn.batch_first, query, key, value, attn_mask), None


@contextmanager
def _tokens(embedding: nn.Embedding, edit: Tokens, prompts: Sequence[Prompt]) -> Iterator[None]:
    places = [
        (row, position, slot)
        for row, prompt in enumerate(prompts)
        for position, slot in enumerate(prompt.slots)
        if slot is not None
    ]
    rows, positions, slots = (torch.tensor(column, device=edit.values.device) for column in zip(*places))

    def overwrite(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        values = edit.values[rows, slots] if edit.per_class else edit.values[slots]
        return output.index_put((rows, positions), values.to(output.dtype))

    handle = embedding.register_forward_hook(overwrite)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _checkpointed(module: nn.Module, inside: Callable[[], Any]) -> Iterator[None]:
    """`module` is computed again in the backward pass, under the edits of this call though they are gone by then."""
    forward = module.forward

    def again(*args: Any, **kwargs: Any) -> Any:
        with inside():
            return forward(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(again, *args, use_reentrant=False, **kwargs)

    with _forward_as(module, run):
        yield
