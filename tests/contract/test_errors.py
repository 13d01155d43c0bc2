"""An error inside a call, or in a block that is computed again, leaves the backbone as it was and the model whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import ALL, TRAINED_INSIDE, build, pairs
from checks import Fault, assert_untouched, failing, flag, gradient, loss_of, relative, snapshot
from selection import by_turns
from torch import Tensor, nn

from adapt import AdaptedModel, Backbone
from adapt.methods.base.traits import EncodesImages, has_trait, skipped_blocks

OPTIONS: tuple[dict[str, Any], ...] = ({}, {"checkpointing": True}, {"fast": False, "checkpointing": True})


def inside(model: AdaptedModel, backbone: Backbone) -> Iterator[tuple[str, nn.Module]]:
    """A part of the first and of the last block of each tower that the model calls, where its path passes."""
    for name, tower in backbone.towers.items():
        if name == "text" and model.text_path == "none":
            continue
        if name == "vision" and has_trait(model.method, EncodesImages):
            continue  # another model sees the images
        called = [i for i in range(len(tower.blocks)) if f"{name}.{i}" not in skipped_blocks(model.method)]
        for index in sorted({called[0], called[-1]}):
            path = model.text_path if name == "text" else model.vision_path
            if model.method.name in ("dino_linear", "patch_memory"):
                path = "plain"  # which watch the library's own forward
            yield f"{name}.{index}", tower.blocks[index].scale1 if path == "fast" else tower.blocks[index].act


@pairs(ALL)
@by_turns("options", OPTIONS, ids=["as it is", "checkpointed", "plain and checkpointed"])
def test_an_error_inside_a_block(
    method: str, backbone: Backbone, options: dict[str, Any], images: Tensor, labels: Tensor
) -> None:
    flag(backbone.model)
    before = snapshot(backbone.model)
    expected = build(method, backbone, **options)(images)
    model = build(method, backbone, **options)
    for _, part in inside(model, backbone):
        with failing(part), pytest.raises(Fault):
            loss_of(model, images, labels)
        assert_untouched(backbone.model, before)
    assert torch.equal(model(images), expected)  # only now: it may keep its class features


@pairs(TRAINED_INSIDE)
@by_turns("fast", [None, False])
def test_an_error_inside_a_block_that_is_computed_again(
    method: str, backbone: Backbone, fast: bool | None, images: Tensor, labels: Tensor
) -> None:
    flag(backbone.model)
    before = snapshot(backbone.model)
    model = build(method, backbone, fast=fast, checkpointing=True)
    expected = gradient(model, images, labels)
    failed = set()
    for name, part in inside(model, backbone):
        loss = loss_of(model, images, labels)
        with failing(part) as calls:
            try:
                torch.autograd.grad(loss, list(model.method.parameters()))
            except Fault:
                failed.add(name)
        assert bool(calls) is (name in failed)
        assert_untouched(backbone.model, before)
    assert relative(gradient(model, images, labels), expected) < 1e-6
    edited = model.method.touches & backbone.towers.keys()
    assert {name.partition(".")[0] for name in failed} >= edited - ({"text"} if skipped_blocks(model.method) else set())
    assert failed
