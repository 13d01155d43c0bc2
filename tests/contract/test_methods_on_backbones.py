"""What holds for every method on every backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import ALL, BY_TRAINED_CLASSES, KINDS, NAMES, NEEDS_VISION_BLOCKS, TRAINED_BY_STEPS, build, new, pairs
from checks import assert_untouched, flag, gradient, loss_of, relative, scaled, snapshot
from selection import by_turns
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone
from adapt.methods.base.traits import Stream, has_trait

OTHER_NAMES = ("apple pie", "goldfish", "toy", "red_panda")


@pytest.mark.parametrize("method", sorted(NEEDS_VISION_BLOCKS))
def test_methods_inside_the_vision_tower_are_refused_on_a_resnet(method: str, open_clip_resnet: Backbone) -> None:
    with pytest.raises(AdaptError, match="the vision tower of CLIP has no transformer blocks"):
        adapt.wrap(open_clip_resnet, new(method), NAMES)


@pairs(TRAINED_BY_STEPS)
def test_a_few_steps_reduce_the_loss(method: str, backbone: Backbone, images: Tensor) -> None:
    model = adapt.wrap(backbone, new(method), NAMES)
    optimizer = torch.optim.AdamW(model.method.parameters(), lr=3e-3)
    labels = model(images).mean(0).argmin().expand(len(images))  # learnable also where all images look the same
    before = loss_of(model, images, labels).item()
    for _ in range(6):
        optimizer.zero_grad()
        loss_of(model, images, labels).backward()
        optimizer.step()
    assert loss_of(model, images, labels).item() < before - 1e-3


@pairs(TRAINED_BY_STEPS)
def test_gradients_reach_the_method_and_never_the_backbone(
    method: str, backbone: Backbone, images: Tensor, labels: Tensor
) -> None:
    backbone.model.requires_grad_(True).train()
    model = build(method, backbone)
    loss_of(model, images, labels).backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.method.parameters())
    assert [name for name, parameter in backbone.model.named_parameters() if parameter.grad is not None] == []
    assert all(parameter.requires_grad for parameter in backbone.model.parameters())
    assert all(module.training for module in backbone.model.modules())


@pairs(ALL)
def test_the_mode_of_the_backbone_does_not_change_what_is_computed(
    method: str, backbone: Backbone, images: Tensor
) -> None:
    model = build(method, backbone).eval()
    expected = model(images)
    backbone.model.train()
    assert torch.equal(build(method, backbone).eval()(images), expected)


@pairs(ALL)
def test_parameters_and_state_are_the_methods(method: str, backbone: Backbone) -> None:
    model = build(method, backbone)
    own = {id(parameter) for parameter in model.method.parameters()}
    assert {id(parameter) for parameter in model.parameters()} == own
    assert own.isdisjoint(map(id, backbone.model.parameters()))
    held = dict(model.method.named_parameters()) | dict(model.method.named_buffers())
    beside = {name for name in held if name.rpartition(".")[2].startswith("_")}  # moves along, and is in no adapter
    assert held.keys() - beside == model.method.state_dict().keys()


@pairs(ALL)
def test_a_saved_adapter_loads_bit_for_bit(method: str, backbone: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = build(method, backbone).eval()
    expected = model(images)
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), backbone)
    state, original = loaded.method.state_dict(), model.method.state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[name], original[name]) for name in state)
    assert loaded.method.config == model.method.config
    assert loaded.class_names == model.class_names
    assert not loaded.training
    assert torch.equal(loaded(images), expected)


@pairs(ALL)
def test_other_classes_share_the_tensors_or_are_refused(method: str, backbone: Backbone, images: Tensor) -> None:
    model = build(method, backbone).eval()
    if model.method.per_class:
        with pytest.raises(AdaptError, match="cannot serve other class names"):
            model.with_classes(OTHER_NAMES)
        return
    other = model.with_classes(OTHER_NAMES)
    assert other.method is model.method
    assert other.class_names == OTHER_NAMES
    # for a stream, images before were taken for other classes
    if not has_trait(model.method, Stream) and method not in BY_TRAINED_CLASSES:
        assert scaled(other(images)[:, [1, 3]], model(images)[:, :2]) < 1e-5


@pairs(ALL)
def test_unwrap_gives_the_backbone_back_as_it_was(
    method: str, backbone: Backbone, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    flag(backbone.model)
    before = snapshot(backbone.model)
    for options in ({}, {"fast": False, "checkpointing": True}):
        model = build(method, backbone, **options)
        if list(model.method.parameters()):
            loss_of(model, images, labels).backward()
        with torch.no_grad():
            model.eval()(images)
        model.save(tmp_path / "a.safetensors")
        assert model.unwrap() is backbone
        assert_untouched(backbone.model, before)
        with pytest.raises(AdaptError, match="was unwrapped"):
            model(images)


@pairs(TRAINED_BY_STEPS)
@by_turns("fast", [None, False])
def test_checkpointed_blocks_give_the_same_gradients(
    method: str, backbone: Backbone, fast: bool | None, images: Tensor, labels: Tensor
) -> None:
    expected = gradient(build(method, backbone, fast=fast), images, labels)
    checkpointed = gradient(build(method, backbone, fast=fast, checkpointing=True), images, labels)
    assert relative(checkpointed, expected) < 1e-6


@pairs(TRAINED_BY_STEPS)
def test_the_librarys_own_checkpointing_is_kept_out(
    method: str, backbone: Backbone, images: Tensor, labels: Tensor
) -> None:
    expected = gradient(build(method, backbone, fast=False), images, labels)
    enable = getattr(backbone.model, "gradient_checkpointing_enable", None) or backbone.model.set_grad_checkpointing
    enable()
    backbone.model.train()
    assert relative(gradient(build(method, backbone, fast=False), images, labels), expected) < 1e-6


@by_turns("backbone", KINDS, indirect=True)
@by_turns("options", [{}, {"fast": False}, {"fast": False, "checkpointing": True}])
def test_models_that_share_a_backbone_do_not_meet(
    backbone: Backbone, options: dict[str, bool], images: Tensor, labels: Tensor
) -> None:
    without = {"dino_linear", *(() if "vision" in backbone.towers else NEEDS_VISION_BLOCKS)}  # it edits nothing
    without |= set() if backbone.tower("text").form.causal else set(BY_TRAINED_CLASSES)
    fitting = [name for name in TRAINED_BY_STEPS if name not in without]
    models = [build(name, backbone, **options) for name in [*fitting, fitting[-1]]]
    for parameter in models[-1].method.parameters():  # the same method twice, with other values
        parameter.data.mul_(1.5)
    alone = [gradient(model, images, labels) for model in models]
    losses = [loss_of(model, images, labels) for model in models]
    together = [
        torch.autograd.grad(loss, list(model.method.parameters())) for loss, model in zip(losses, models, strict=True)
    ]
    for mixed, expected in zip(together, alone, strict=True):
        assert relative(torch.cat([tensor.flatten() for tensor in mixed]), expected) < 1e-6
