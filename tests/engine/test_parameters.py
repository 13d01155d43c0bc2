"""Trained tensors in the place of frozen parameters: as a model that holds them, and only inside a call."""

from __future__ import annotations

import copy

import pytest
import tiny_backbones
import torch
from checks import assert_untouched, scaled, snapshot
from selection import by_turns
from torch import Tensor, nn

from adapt import AdaptError, Backbone, methods, wrap
from adapt.edits import Parameters
from adapt.engine.hooks import run
from adapt.methods.base.traits import OwnWeights


def moved_by_a_little(model: nn.Module) -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(parameter.detach() + 0.02 * torch.randn(parameter.shape, generator=random))
        for name, parameter in model.named_parameters()
    }


@by_turns("backbone", tiny_backbones.WITH_VISION_BLOCKS, indirect=True)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_they_are_read_as_by_a_model_that_holds_them(backbone: Backbone, images: Tensor, checkpointing: bool) -> None:
    before, frozen = snapshot(backbone.model), backbone.encode_image(images)
    values = moved_by_a_little(backbone.model)
    other = copy.deepcopy(backbone)
    for name, parameter in other.model.named_parameters():
        parameter.data.copy_(values[name]).requires_grad_()
    expected = other.encode_image(images)
    expected.square().sum().backward()

    changes = [(backbone.tower("vision"), [Parameters(values)])]
    features = run(backbone.model, changes, lambda: backbone.encode_image(images), checkpointing=checkpointing)
    features.square().sum().backward()
    assert scaled(features, expected) < 1e-6
    assert scaled(features, frozen) > 1e-3
    gradients = {name: parameter.grad for name, parameter in other.model.named_parameters()}
    assert any(gradient is not None for gradient in gradients.values())
    for name, gradient in gradients.items():
        own = values[name].grad
        assert (own is None or not own.any()) if gradient is None else scaled(own, gradient) < 1e-5
    assert_untouched(backbone.model, before)
    assert torch.equal(backbone.encode_image(images), frozen)


def test_modules_that_share_a_parameter_share_its_value() -> None:
    first = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(first, nn.Linear(3, 3, bias=False))
    model[1].weight = first.weight
    backbone = tiny_backbones.backbone("open_clip")
    tower, value = backbone.tower("vision"), nn.Parameter(torch.eye(3))
    backbone.model.add_module("tied", model)
    x = torch.randn(2, 3)
    changes = [(tower, [Parameters({"tied.0.weight": value})])]
    assert torch.equal(run(backbone.model, changes, lambda: model(x)), x)
    assert model[0].weight is model[1].weight is first.weight


def test_names_and_shapes_are_checked(backbone: Backbone, images: Tensor) -> None:
    def refused(*values: dict[str, Tensor]) -> pytest.ExceptionInfo[AdaptError]:
        changes = [(backbone.tower("vision"), [Parameters(each) for each in values])]
        with pytest.raises(AdaptError) as refusal:
            run(backbone.model, changes, lambda: backbone.encode_image(images))
        return refusal

    assert "gives nothing the shape (1,), but the model has no such parameter" in str(
        refused({"nothing": torch.ones(1)}).value
    )
    name, parameter = next(iter(backbone.model.named_parameters()))
    assert f"but the model has {tuple(parameter.shape)}" in str(refused({name: torch.ones(1)}).value)
    same = {name: parameter.detach()}
    assert f"two edits of the same kind change {name} of the vision tower" in str(refused(same, same).value)


class Whole(methods.BitFit, OwnWeights):
    name = "whole"


def test_no_fast_path_takes_them(backbone: Backbone) -> None:
    model = wrap(backbone, Whole(), ["cat", "dog"])
    assert (model.vision_path, model.text_path) == ("plain", "plain")
    with pytest.raises(AdaptError, match="whole trains weights, which only the library's forward reads"):
        wrap(backbone, Whole(), ["cat", "dog"], fast=True)
