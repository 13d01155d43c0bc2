"""The fast path for images: exact features by a vision tower, without redundant work.

Attention is computed on contiguous `(b, l, d)`: torch's `nn.MultiheadAttention` transposes to `(l, b, d)`, which makes
autograd compute one small product for each position under a frozen weight. If the class token is pooled, the last block
computes only the class token. Blocks before the first edit have no graph, as nothing in them needs a gradient.

Callers must first call `reason_against`, which also checks that the tower's modules still belong to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isqrt
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.backbones.locks import alone, frozen
from adapt.backbones.tower import Tower, check_parts
from adapt.common.devices import moved
from adapt.common.errors import AdaptError
from adapt.edits import Attention, Edit
from adapt.engine.blocks import (
    HOOKED,
    RowIndex,
    Structure,
    again_in_backward,
    bypassing_absent,
    hooked,
    run_block,
    same_features,
    structure,
)
from adapt.engine.hooks import run, watched
from adapt.engine.plan import Plan, plan
from adapt.engine.tokens import appended, overwritten

CLASS_ROW = slice(1)


def reason_against(backbone: ImageEncoder) -> str | None:
    """Return why the fast path does not support the vision tower in its current state, or None if it does.

    The result is cached until a module changes, so that repeated calls are cheap.
    """
    now = structure(backbone, "vision"), backbone.encode_image
    known, reason = _REASONS.get(backbone, (None, None))
    if known != now:
        reason = _found_against(backbone)
        if reason != HOOKED:  # hooks come and go
            _REASONS[backbone] = (now, reason)
    return reason


_Seen = tuple[Structure, object]
_REASONS: WeakKeyDictionary[ImageEncoder, tuple[_Seen, str | None]] = WeakKeyDictionary()


def _found_against(backbone: ImageEncoder) -> str | None:
    tower = backbone.towers.get("vision")
    if tower is None or tower.vision is None:
        return "its blocks are not mapped, or features are not read off their tokens"
    if not all(block.plain_attention and {"fc1", "fc2"} <= block.projections.keys() for block in tower.blocks):
        return "its blocks are of another form than CLIP's"
    if hooked(backbone, "vision"):
        return HOOKED
    return None if _agrees(backbone, tower) else "its features differ from the library's own forward on two images"


@torch.no_grad()
def _agrees(backbone: ImageEncoder, tower: Tower) -> bool:
    """Return whether the fast path and the library's own forward give the same features for two random noise images."""
    if backbone.device.type == "meta":
        return True  # an outline has no values to compare
    size = getattr(getattr(backbone.model, "visual", None), "image_size", backbone.preprocess.size)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    noise = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    images = noise.to(backbone.device, backbone.dtype)
    absent = bypassing_absent(tower)
    try:
        check_parts(tower, backbone.model)
        fast = encode(backbone, images, absent)
    except (AdaptError, RuntimeError):  # a module was replaced, or shapes do not fit: the tower is not as mapped
        return False
    plain = run(backbone.model, [(tower, absent)], lambda: backbone.encode_image(images))
    return same_features(backbone, tower, plain, fast)


def encode(
    backbone: ImageEncoder,
    images: Tensor,
    edits: Sequence[Edit],
    checkpointing: bool = False,
    begun: int | None = None,
) -> Tensor:
    """Return the features `(b, e)`, before normalisation, of images `(b, 3, h, w)` by the vision tower with `edits`.

    With `begun`, the tokens `(b, l, d)` at the input of that block stand for the images. They must have been computed
    without edits. Raises AdaptError if an edit changes an earlier block.
    """
    tower = backbone.tower("vision")
    planned = plan(tower, edits)
    if begun is not None and (first := first_edited(tower, planned)) < begun:
        raise AdaptError(
            f"the batches are inputs of vision block {begun}, but block {first} before it is edited: use images"
        )
    with frozen(backbone.model):
        x = entered(tower, planned, images) if begun is None else images
        return pooled(tower, planned, _through(backbone.model, tower, planned, begun or 0, x, checkpointing))


def tokens(backbone: ImageEncoder, images: Tensor, edits: Sequence[Edit], checkpointing: bool = False) -> Tensor:
    """Return the last block's output `(b, l, d)` for images `(b, 3, h, w)`, with `edits`, without learned tokens."""
    tower = backbone.tower("vision")
    planned = plan(tower, edits)
    with frozen(backbone.model):
        x = entered(tower, planned, images)
        x = _through(backbone.model, tower, planned, 0, x, checkpointing, whole=True)
    return x[:, : -planned.learned] if planned.learned else x


@torch.no_grad()
def block_inputs(backbone: ImageEncoder, block: int, images: Tensor, begun: int | None = None) -> Tensor:
    """Return unedited tokens `(b, l, d)` at the input of `block`, from images or from tokens at block `begun`."""
    tower, nothing = backbone.tower("vision"), Plan()
    with frozen(backbone.model):
        x = entered(tower, nothing, images) if begun is None else images
        return _through(backbone.model, tower, nothing, begun or 0, x, until=block)


def first_edited(tower: Tower, planned: Plan) -> int:
    """Return the index of the first block that an edit affects, or the number of blocks if no edit affects one."""
    if "pre_norm" in planned.outer:
        return 0
    inside = [*planned.replaced, *planned.attention, *planned.parallel, *planned.bypassed]
    if planned.entering is not None:
        inside.append(planned.entering.block or 0)
    if planned.after is not None:  # the last block then computes all tokens
        inside.append(len(tower.blocks) - 1)
    return min(inside, default=len(tower.blocks))


def entered(tower: Tower, planned: Plan, images: Tensor) -> Tensor:
    """Return the input `(b, l, d)` of the first block for `images`, including learned tokens that are added there."""
    assert tower.vision is not None  # without it, the fast path does not serve
    x = tower.vision.embed(images)
    if (entering := planned.entering_at(None)) is not None:
        x = appended(entering, x)
    pre_norm = planned.outer.get("pre_norm", tower.pre_norm)
    return x if pre_norm is None else pre_norm(x)


def _through(
    model: nn.Module,
    tower: Tower,
    planned: Plan,
    first: int,
    x: Tensor,
    checkpointing: bool = False,
    until: int | None = None,
    whole: bool = False,
) -> Tensor:
    """Return tokens `x` `(b, l, d)` after all blocks from number `first` on, or up to the block before `until`.

    Without `whole`, the last block computes only the class token where that alone is read, and the learned tokens if
    their outputs are read.
    """
    one_row = tower.form.pooling == "class" and planned.after is None and not whole
    learned = planned.learned
    read = CLASS_ROW if planned.outputs is None else torch.tensor([0, *range(-learned, 0)], device=x.device)
    last = len(tower.blocks) - 1
    for index in range(first, len(tower.blocks) if until is None else until):
        if (entering := planned.entering_at(index)) is not None:
            x = appended(entering, x)
        if (edit := planned.overwriting.get(index)) is not None:
            x = overwritten(edit, x)
        rows = read if index == last and one_row else None
        if index in planned.bypassed:
            x = planned.bypassed[index](x if rows is None else x[:, rows])
            continue
        attending = partial(attend, tower.heads, planned.attention.get(index), learned, rows=rows)
        block = partial(run_block, tower.blocks[index], index, planned, attend=attending, rows=rows)
        x = again_in_backward(model, block, x) if checkpointing else block(x)
    return x


def attend(
    heads: int, edit: Attention | None, learned: int, q: Tensor, k: Tensor, v: Tensor, rows: RowIndex | None = None
) -> Tensor:
    """Return attention of `q` `(b, queries, d)`, all or some `rows` of the tokens, to `k` and `v` `(b, l, d)`.

    The last `learned` tokens are learned tokens.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if edit is None:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        keys = torch.arange(k.shape[2], device=k.device) >= k.shape[2] - learned
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        mixed = edit.weights(scores, keys if rows is None else keys[rows], keys) @ v
    return mixed.transpose(1, 2).flatten(2)


def pooled(tower: Tower, planned: Plan, x: Tensor) -> Tensor:
    """Return image features `(b, e)`, pooled from the output of the last block without the learned tokens."""
    parts, norm = tower.vision, planned.outer.get("final_norm", tower.final_norm)
    assert parts is not None  # as above
    assert norm is not None  # every mapped vision tower has one
    if planned.outputs is not None:
        planned.outputs(norm(x[:, -planned.learned :]))
    if planned.learned and (tower.form.pooling != "class" or planned.after is not None):
        x = x[:, : -planned.learned]
    if planned.after is not None:
        x = planned.after(x)
    features: Tensor = planned.outer.get("projection", parts.project)(parts.read(x, norm))
    return features


def local_features(backbone: ImageEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return patch features `(b, rows, columns, e)` and image features `(b, e)` of images `(b, 3, h, w)`.

    In the last blocks of a CLIP, attention mixes information from the entire image into every patch. A second stream of
    tokens avoids this. It gets its values from the ordinary stream, attends by the similarity of the values, so that
    patches only mix with similar ones, and skips the MLPs (AnoVL, arXiv 2308.15939). Both kinds of features are before
    normalisation and come from one forward pass. Raises AdaptError for a vision
    tower without a class token, or with blocks of another form than CLIP's.
    """
    reason = reason_against(backbone)
    tower, nothing = backbone.towers.get("vision"), Plan()
    if reason is None and tower is not None and tower.form.registers:
        reason = "it has registers between the class token and the patches"
    if reason is None and tower is not None and tower.form.pooling != "class":
        reason = f"it is read at {tower.form.pooling!r}, not at a class token in front of the patches"
    if reason is not None or tower is None:
        raise AdaptError(f"{backbone.describe()} has no patch features: {reason}. Use a CLIP with a ViT")
    assert tower.vision is not None  # or reason_against had refused
    assert tower.final_norm is not None
    attend_all = partial(attend, tower.heads, None, 0)
    with frozen(backbone.model):
        stream = local = entered(tower, nothing, images.to(backbone.dtype))
        for index, block in enumerate(tower.blocks):
            values = block.projections["v"](block.norm1(stream))
            local = local + block.scale1(block.projections["out"](attend_all(values, values, values)))
            stream = run_block(block, index, nothing, stream, attend_all)
        features = tower.vision.project(tower.final_norm(local[:, 1:]))
        image_features = pooled(tower, nothing, stream)
    rows = isqrt(features.shape[1] * images.shape[-2] // images.shape[-1])
    return features.unflatten(1, (rows, -1)), image_features


def patch_features(backbone: ImageEncoder, images: Tensor, block: int) -> Tensor:
    """Return the features `(b, rows, columns, d)` of the patches of images `(b, 3, h, w)` behind a block.

    They are tokens after the block and the tower's final norm, without class token and registers. A model without a
    tower gives one of timm's intermediate maps, such as the stages of a convolutional network. A negative `block`
    counts from the end. Raises AdaptError for a backbone with neither, and for a block that it does not have.
    """
    model: Any = backbone.model
    tower, of_timm = backbone.towers.get("vision"), hasattr(model, "forward_intermediates")
    mapped = tower.final_norm is not None if tower is not None else backbone.kind == "vision encoder" and of_timm
    if backbone.as_decoded or not mapped:
        raise AdaptError(f"{backbone.describe()} has no patch features: use a ViT, or a convolutional network of timm")
    count = len(tower.blocks if tower is not None else model.feature_info)
    if not -count <= block < count:
        raise AdaptError(f"block is {block}, but the images pass {count} blocks: give {-count} to {count - 1}")
    images = moved(images, backbone.device).to(backbone.dtype)
    with torch.no_grad(), alone(backbone.model), frozen(backbone.model):
        if tower is None:
            [found] = model.forward_intermediates(images, indices=[block], norm=True, intermediates_only=True)
            features: Tensor = found.permute(0, 2, 3, 1)
            return features
        name = f"vision.{block % count}"
        with watched(backbone.model, backbone.towers, [name]) as seen:
            backbone.encode_image(images)
        assert tower.final_norm is not None  # which RADIO's own forward, with other tokens before its patches, has not
        patches = tower.final_norm(seen[name][1][:, tower.form.first_patch :])
    rows = isqrt(patches.shape[1] * images.shape[-2] // images.shape[-1])
    return patches.unflatten(1, (rows, -1))
