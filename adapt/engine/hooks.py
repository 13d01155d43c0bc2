"""The plain path: the library's own forward, with edits that are applied only during one call.

An edited projection or attention gets a temporary `forward`, and learned tokens enter through hooks. All of them are
removed when the call returns. A checkpointed block applies its edits again while it is recomputed in the backward pass.

The last block of a decoder may be computed for the tokens whose output is read alone (`shortened`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from adapt.backbones.base import ImageEncoder
from adapt.backbones.locks import alone, frozen
from adapt.backbones.split_attention import attend
from adapt.backbones.tower import NORMS, Block, BlockOutput, Site, Tower, check_parts, modules_of, tokens_of
from adapt.common.errors import AdaptError
from adapt.common.untraced import untraced
from adapt.edits import Edit, LowRank, Parallel, Replace
from adapt.engine import tokens
from adapt.engine.plan import Plan, plan
from adapt.prompts import Prompt


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Replace the forward of `module` with `forward` in the `with` block, and restore the original afterwards."""
    before = vars(module).get("forward")
    # a module as an attribute would become a child
    module.forward = forward.__call__ if isinstance(forward, nn.Module) else forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


_ATTENTION = {"q", "k", "v", "out"}  # the projections of an attention
Linear = Callable[[Tensor], Tensor]
Computed = TypeVar("Computed")


@untraced  # a compiled forward would keep the edits of its traced call
def run(
    model: nn.Module,
    changes: Sequence[tuple[Tower, Sequence[Edit]]],
    compute: Callable[[], Computed],
    *,
    prompts: Sequence[Prompt] = (),
    checkpointing: bool = False,
    merge: bool = False,
) -> Computed:
    """Return the result of `compute()`, during which the forward of `model` runs under the edits in `changes`.

    `changes` is a list of towers with their edits. `prompts` give the positions of learned tokens in each row of text.
    With `checkpointing`, every block of these towers is recomputed in the backward pass. With `merge`, low-rank updates
    are folded into copies of the weights if there is only one image.

    Meanwhile, no other call can run on `model`. Raises AdaptError if a tower does not support one of its edits, or if a
    tower no longer belongs to the model.
    """
    plans = [(tower, plan(tower, edits)) for tower, edits in changes]
    with alone(model), frozen(model), ExitStack() as stack:
        for tower, planned in plans:
            check_parts(tower, model)
            stack.enter_context(_edited(model, tower, planned, prompts, checkpointing, merge))
        result = compute()
    for tower, planned in plans:
        result = _projected(tower, planned, result)
    return result


@contextmanager
def _edited(
    model: nn.Module, tower: Tower, planned: Plan, prompts: Sequence[Prompt], checkpointing: bool, merge: bool
) -> Iterator[None]:
    prompts = planned.with_slots(prompts)
    inside = _once(model, partial(_inside_blocks, model, tower, planned, prompts, merge))
    with ExitStack() as stack:
        stack.enter_context(inside())
        stack.enter_context(_outer(tower, planned))
        for index, module in planned.bypassed.items():
            block = tower.blocks[index]
            stack.enter_context(forward_as(block.module, partial(_bypass, module, block.returns)))
        for index, beside in planned.parallel.items():
            if "block" in beside:
                block = tower.blocks[index]
                stack.enter_context(block.module.register_forward_hook(partial(_join_block, block, beside["block"])))
        # hooks run in this order: what is added beside the last block, learned tokens cut off, the module after it
        stack.enter_context(tokens.entered(tower, planned, prompts))
        if planned.after is not None:
            last = tower.blocks[-1]
            behind = tokens.oriented(last, planned.after)
            stack.enter_context(last.module.register_forward_hook(lambda module, inputs, output: behind(output)))
        if checkpointing:
            for block in tower.blocks:
                stack.enter_context(_checkpointed(block.module, inside))
        yield


def _once(
    model: nn.Module, enter: Callable[[], AbstractContextManager[None]]
) -> Callable[[], AbstractContextManager[None]]:
    """Return a function that opens a context with `model` frozen and `enter()` active; nested contexts do nothing."""
    entered: list[bool] = []

    @contextmanager
    def inside() -> Iterator[None]:
        with alone(model):
            if entered:
                yield
                return
            entered.append(True)
            try:
                with frozen(model), enter():
                    yield
            finally:
                entered.clear()

    return inside


@contextmanager
def _inside_blocks(
    model: nn.Module, tower: Tower, planned: Plan, prompts: Sequence[Prompt], merge: bool
) -> Iterator[None]:
    """Apply all edits inside transformer blocks in the `with` block, which may run the forward or recompute a block."""
    with ExitStack() as stack:
        if planned.parameters:
            stack.enter_context(_holding(model, planned.parameters))
        for index in planned.replaced.keys() | planned.attention.keys():
            weights = None
            if index in planned.attention:
                weights = tokens.masked(tower, planned, prompts, planned.attention[index])
            replaced = planned.replaced.get(index, {})
            modules = {part: module for part, module in replaced.items() if part not in NORMS}
            for module, forward in _forwards(tower.blocks[index], modules, tower.heads, weights):
                stack.enter_context(forward_as(module, forward))
        for index, parts in planned.replaced.items():
            for name in parts.keys() & set(NORMS):
                stack.enter_context(forward_as(getattr(tower.blocks[index], name), parts[name]))
        for index, beside in planned.parallel.items():
            for edit in beside.values():
                if edit.site != "block":
                    stack.enter_context(_beside(tower.blocks[index].sites[edit.site], edit))
        for index, updates in planned.low_rank.items():
            stack.enter_context(updated(tower.blocks[index], updates, merge))
        yield


@contextmanager
def _holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put `values` in the place of the parameters with these names in the `with` block, also where modules share one.

    Raises AdaptError if the model has no parameter of a name, or one of another shape.
    """
    own = dict(model.named_parameters())
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            there = f"{tuple(own[name].shape)}" if name in own else "no such parameter"
            raise AdaptError(f"an edit gives {name} the shape {tuple(value.shape)}, but the model has {there}")
    chosen = {id(own[name]): value for name, value in values.items()}
    places = [
        (module._parameters, name, parameter)
        for module in modules_of(model)
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in chosen
    ]
    try:
        for held, name, parameter in places:
            # as `torch.func.functional_call` does
            held[name] = chosen[id(parameter)].to(parameter.dtype)  # type: ignore[assignment]
        yield
    finally:
        for held, name, parameter in places:
            held[name] = parameter


@contextmanager
def _beside(site: Site, edit: Parallel) -> Iterator[None]:
    """Add the output of a `Parallel` edit to the output of a sublayer in the `with` block; both read the same input."""
    read: list[Tensor] = []

    def keep(reader: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        read[:] = [inputs[0] if output is None else output]

    def join(added: nn.Module, inputs: object, output: BlockOutput) -> BlockOutput:
        return _added(output, edit.module(read.pop()))

    # a sum inside the reading module is made before this module ends
    reading = site.read.register_forward_hook if edit.normed else site.read.register_forward_pre_hook
    with reading(keep), site.added.register_forward_hook(join):
        yield


def _join_block(
    block: Block, edit: Parallel, module: nn.Module, inputs: tuple[Tensor, ...], output: BlockOutput
) -> BlockOutput:
    """Return a block's output plus the output of a `Parallel` edit, which is computed from the block's input.

    The edit runs outside the block, so gradient checkpointing of the block does not recompute the edit. Only a norm
    that the edit reads is computed twice.
    """
    norm = block.norm_of("block") if edit.normed else None
    return _added(output, edit.module(inputs[0] if norm is None else norm(inputs[0])))


def _added(output: BlockOutput, beside: Tensor) -> BlockOutput:
    return (output[0] + beside, *output[1:]) if isinstance(output, tuple) else output + beside


@contextmanager
def _outer(tower: Tower, planned: Plan) -> Iterator[None]:
    """Replace layers outside the blocks (norms, projection) in the `with` block; a bare parameter becomes None."""
    with ExitStack() as stack:
        for name, module in planned.outer.items():
            part = tower.parts[name]
            if isinstance(part, nn.Module):
                stack.enter_context(forward_as(part, module))
            elif isinstance(getattr(part.owner, part.name), nn.Module):
                stack.enter_context(forward_as(getattr(part.owner, part.name), module))
            else:
                stack.callback(setattr, part.owner, part.name, getattr(part.owner, part.name))
                setattr(part.owner, part.name, None)
        yield


def _projected(tower: Tower, planned: Plan, result: Computed) -> Computed:
    """Apply the new final projection to `result` if the original projection is a bare parameter; return the result."""
    part, module = tower.projection, planned.outer.get("projection")
    if part is None or module is None or isinstance(getattr(part.owner, part.name), nn.Module):
        return result
    projected: Computed = module(result)
    return projected


def _bypass(module: nn.Module, returns: int, x: Tensor, *args: object, **kwargs: object) -> BlockOutput:
    """Return the output of `module`, which replaces a block, in the form (tensor or tuple) that the block returns."""
    return (module(x), *[None] * (returns - 1)) if returns else module(x)


def _forwards(
    block: Block, modules: dict[str, nn.Module], heads: int, weights: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[nn.Module, Callable[..., object]]]:
    """Yield pairs of a module in `block` and the new forward that edits give this module.

    `modules` replace the block's projections, and `weights` maps scaled scores to attention weights.
    """
    linears: dict[str, Linear] = {
        letter: modules.get(letter, projection) for letter, projection in block.projections.items()
    }
    recomputed = True  # whether the attention is computed from its parts
    if weights is not None:
        yield block.attn, partial(_weighted, block, linears, heads, weights)
    elif isinstance(block.attn, nn.MultiheadAttention) and modules.keys() & _ATTENTION:
        # it never calls its projections, unlike a quantised one, which is split
        yield block.attn, partial(attend, linears, block.attn.num_heads, block.attn.batch_first)
    else:
        recomputed = False
    for owner in {block.projections[letter].module for letter in modules}:
        shared = [letter for letter, projection in block.projections.items() if projection.module is owner]
        if not (recomputed and _ATTENTION.issuperset(shared)):
            rows = [block.projections[letter].rows for letter in shared]
            yield owner, partial(_side_by_side, [linears[letter] for letter in shared], rows)


def _side_by_side(linears: Sequence[Linear], rows: Sequence[slice | Tensor | None], x: Tensor) -> Tensor:
    """Return the output `(..., sum of out)` of a fused linear layer for `x` `(..., in)`, by separate `linears`."""
    outputs = [linear(x) for linear in linears]
    if len(outputs) == 1:
        return outputs[0]
    joined = torch.cat(outputs, dim=-1)
    interleaved = [index for index in rows if isinstance(index, Tensor)]
    return joined[..., torch.cat(interleaved).argsort().to(joined.device)] if interleaved else joined


def _weighted(
    block: Block,
    linears: dict[str, Linear],
    heads: int,
    weights: Callable[[Tensor], Tensor],
    x: Tensor | None = None,
    *args: object,
    **inputs: Tensor,
) -> BlockOutput:
    """Return self-attention with weights computed by an edit, which also applies the mask in place of the library."""
    x = next(inputs[name] for name in ("hidden_states", "query", "x") if name in inputs) if x is None else x
    out, _ = attend(linears, heads, block.batch_first, x, x, x, weights=weights)
    return (out, None) if block.attn_returns_weights else out


def _checkpointed(
    module: nn.Module, inside: Callable[[], AbstractContextManager[None]]
) -> AbstractContextManager[None]:
    """Return a context in which `module` is recomputed in the backward pass, under the same edits as in the forward."""
    forward = module.forward

    def again(*args: object, **kwargs: object) -> object:
        with inside():
            return forward(*args, **kwargs)

    return forward_as(module, partial(checkpoint, again, use_reentrant=False))


@contextmanager
def updated(block: Block, updates: dict[str, LowRank], merge: bool) -> Iterator[None]:
    """Apply low-rank `updates` to projections (or the MLP) of `block` in the `with` block.

    With `merge`, updates for a single image are folded into copies of the weights, for floating-point linear layers
    that no other edit replaces. All other updates run as a second branch beside the frozen weights.
    """
    merged: dict[nn.Linear, dict[str, LowRank]] = {}
    with ExitStack() as stack:
        for site, update in updates.items():
            linear = block.projections[site].module if merge and site in block.projections else None
            plain = type(linear) is nn.Linear and "forward" not in vars(linear) and linear.weight.is_floating_point()
            if isinstance(linear, nn.Linear) and plain and len(update.down) == 1:
                merged.setdefault(linear, {})[site] = update
            else:
                stack.enter_context(_with_update(block, site, update))
        for linear, own in merged.items():
            stack.enter_context(forward_as(linear, _merged(linear, block, own)))
        yield


def _merged(linear: nn.Linear, block: Block, updates: dict[str, LowRank]) -> Callable[[Tensor], Tensor]:
    weight = linear.weight.detach()
    rows = {site: block.projections[site].rows for site in updates}
    if None in rows.values():  # one update of the full weight, which need not be copied first
        (update,) = updates.values()
        weight = _plus(weight, update)
    else:
        weight = weight.clone()
        for site, update in updates.items():
            weight[rows[site]] = _plus(weight[rows[site]], update)
    return partial(F.linear, weight=weight, bias=linear.bias)


def _plus(weight: Tensor, update: LowRank) -> Tensor:
    """Return `weight` plus the low-rank update `scale * up @ down.T` of a single image, computed in fp32."""
    up, down = update.up[0].float(), update.down[0].float()
    return torch.addmm(weight.float(), up, down.T, alpha=update.scale).to(weight.dtype)


def _with_update(block: Block, site: str, update: LowRank) -> RemovableHandle:
    added_by = partial(_change, update.scale * update.down, update.up.transpose(1, 2))
    projection = block.projections.get(site)
    owner, rows = (block.mlp, None) if projection is None else (projection.module, projection.rows)
    assert owner is not None  # the plan refuses a site that the block does not have

    def join(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = added_by(inputs[0])
        if rows is None:
            return output + added
        index = torch.arange(output.shape[-1])[rows].to(output.device)
        return output.index_add(-1, index, added.to(output.dtype))

    return owner.register_forward_hook(join)


def _change(down: Tensor, up: Tensor, x: Tensor) -> Tensor:
    """Return the low-rank term `x @ down @ up` `(n, l, out)` for `x` `(n, l, in)`, with factors for each image.

    `down` is `(images, in, rank)`, and `up` is `(images or 1, rank, out)`. `n` is a multiple of the number of images,
    and the rows of each image are adjacent.
    """
    images = len(down)
    if len(x) % images:
        raise AdaptError(f"{len(x)} rows cannot be divided evenly among the low-rank updates of {images} images")
    of_images = x.reshape(images, -1, x.shape[-1])
    return (of_images @ down.to(x.dtype) @ up.to(x.dtype)).reshape(*x.shape[:-1], -1)


Seen = dict[str, tuple[Tensor, Tensor]]


@contextmanager
def watched(model: nn.Module, towers: Mapping[str, Tower], names: Collection[str]) -> Iterator[Seen]:
    """Yield a dict that stores the latest input and output `(b, l, d)` of each block in `names`, such as vision.3.

    In the `with` block, other threads cannot run `model`, to which the towers belong.
    """
    seen: Seen = {}

    def keep(name: str, block: Block, module: nn.Module, inputs: tuple[Tensor, ...], output: BlockOutput) -> None:
        before, after = inputs[0], tokens_of(output)
        seen[name] = (before, after) if block.batch_first else (before.transpose(0, 1), after.transpose(0, 1))

    with alone(model), ExitStack() as stack:
        for name in names:
            tower, _, index = name.partition(".")
            block = towers[tower].blocks[int(index)]
            stack.enter_context(block.module.register_forward_hook(partial(keep, name, block)))
        yield seen


def token_count(backbone: ImageEncoder) -> int:
    """Return the number of tokens of an image in the unedited vision tower, measured in one forward pass."""
    with watched(backbone.model, backbone.towers, ["vision.0"]) as seen, torch.inference_mode():
        backbone.encode_image(backbone.blank())
    return int(seen["vision.0"][0].shape[1])


# of transformers: attention, then an MLP, each behind a norm and added to its input
_KNOWN = {
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
    "Qwen3VLTextDecoderLayer",
}


def shortens(tower: Tower, edits: Sequence[Edit]) -> bool:
    """Return whether a decoder's last block can be computed for some tokens alone, under the `edits` of the decoder."""
    last = len(tower.blocks) - 1
    known = type(tower.blocks[last].module).__name__ in _KNOWN
    return known and all(isinstance(edit, Replace) for edit in edits if edit.block == last)


def shortened(layer: Any, needed: Tensor) -> AbstractContextManager[None]:
    """Return a context in which `layer`, a decoder's last block, is computed for the `needed` tokens `(b, l)` alone.

    All tokens are its keys and values. The output of a token that is not needed is the block's input.
    """
    return forward_as(layer, partial(_of_needed, layer, needed))


def _of_needed(layer: Any, needed: Tensor, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
    output = layer.self_attn.o_proj
    project = output.forward  # under its edits
    with forward_as(output, lambda x: x):
        attended, *_ = layer.self_attn(layer.input_layernorm(hidden), *args, **kwargs)
    x = hidden[needed] + project(attended[needed])
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    return hidden.masked_scatter(needed[..., None], x)
