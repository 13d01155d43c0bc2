"""Backbones in other precisions, and moves before and after wrapping."""

from __future__ import annotations

import pytest
import torch
from cases import ALL, ALL_WITH_TEXT, KINDS, TRAINED_BY_STEPS, build, class_features, pairs
from checks import gradient, loss_of, relative, scaled
from torch import Tensor

import adapt
from adapt import Backbone


@pairs(ALL)
def test_a_wrapped_model_moves_as_one(method: str, backbone: Backbone, images: Tensor) -> None:
    model = build(method, backbone).eval()
    with torch.no_grad():
        expected = model(images)  # its class features are cached
        logits = model.to(torch.float64)(images.double())
    assert logits.dtype == torch.float64
    assert all(parameter.dtype == torch.float64 for parameter in [*model.parameters(), *backbone.model.parameters()])
    assert scaled(logits.float(), expected) < 1e-4


@pairs(TRAINED_BY_STEPS)
def test_gradients_in_double_are_those_in_single(
    method: str, backbone: Backbone, images: Tensor, labels: Tensor
) -> None:
    model = build(method, backbone).eval()
    single = gradient(model, images, labels)
    assert relative(gradient(model.double(), images.double(), labels).float(), single) < 1e-4


@pairs(ALL)
def test_a_backbone_moved_before_wrapping(method: str, backbone: Backbone, images: Tensor) -> None:
    expected = build(method, backbone).eval()(images)
    backbone.model.double()
    assert scaled(build(method, backbone).eval()(images.double()).float(), expected) < 1e-4


@pairs(ALL)
def test_a_backbone_moved_after_wrapping(method: str, backbone: Backbone, images: Tensor) -> None:
    model = build(method, backbone).eval()
    expected = model(images)
    backbone.model.double()
    assert scaled(model(images.double()).float(), expected) < 1e-4


@pairs(ALL)
def test_a_bf16_backbone(method: str, backbone: Backbone, images: Tensor, labels: Tensor) -> None:
    model = build(method, backbone).eval()
    expected = model.image_features(images)
    backbone.model.bfloat16()
    low = build(method, backbone)
    assert relative(low.image_features(images).float(), expected) < 0.05
    loss = loss_of(low, images, labels)
    assert torch.isfinite(loss)
    if method in TRAINED_BY_STEPS:
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in low.method.parameters())


@pairs(ALL_WITH_TEXT)
def test_autocast(method: str, backbone: Backbone, images: Tensor, labels: Tensor) -> None:
    model = build(method, backbone)
    expected = class_features(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(class_features(model).float(), expected) < 0.05
        loss = loss_of(model, images, labels)
    assert torch.isfinite(loss)
    if method in TRAINED_BY_STEPS:
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.method.parameters())


@pytest.mark.parametrize("backbone", [kind for kind in KINDS if kind != "open_clip_resnet"], indirect=True)
def test_loras_stand_ins_follow_the_backbone(backbone: Backbone, images: Tensor) -> None:
    """Those of tuners that read the weight have the backbone's own; the plain one's hold none."""
    for options, tied in (({}, False), ({"use_dora": True}, True)):
        model = adapt.wrap(backbone, adapt.methods.LoRA(dropout=0.0, options=options), ("goldfish", "toy"))
        model.to(torch.float64)(images.double())
        for (tower, block, letter), layer in model.method._layers():
            weight, base = backbone.tower(tower).blocks[block].projections[letter].weight, layer.get_base_layer().weight
            assert (base.data_ptr() == weight.data_ptr()) == tied
            assert base.untyped_storage().nbytes() == (weight.untyped_storage().nbytes() if tied else 4)
