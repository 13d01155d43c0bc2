"""Blended and calibrated answers: what they are, and that an adapter keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_backbones
import torch
from checks import perturb
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.formats.adapter import read_header

NAMES = ("goldfish", "red_panda", "sea cucumber")


def made(method: str) -> AdaptedModel:
    torch.manual_seed(0)
    kind = methods.find(method)
    return perturb(adapt.wrap(tiny_backbones.backbone("open_clip"), kind(**kind.example), NAMES)).eval()


def zero_shot(model: AdaptedModel, template: str = "a photo of a {}.") -> AdaptedModel:
    return adapt.wrap(model.backbone, methods.ZeroShot(template), NAMES).eval()


@pytest.mark.parametrize("method", ["coop", "lora", "tip_adapter"])
def test_a_blend_is_the_mean_of_both_logits(method: str, images: Tensor) -> None:
    model = made(method)
    with torch.no_grad():
        own, frozen = model(images), zero_shot(model, "a drawing of a {}.")(images)
        frozen = frozen * (model.method.logit_scale or model.backbone.logit_scale) / model.backbone.logit_scale
        assert (own - frozen).abs().max() > 1e-2
        mixed = model.blended(0.3, "a drawing of a {}.")
        assert torch.allclose(mixed(images), 0.3 * own + 0.7 * frozen, atol=1e-4)
        assert torch.equal(model(images), own)  # the model itself stays as it is
        assert torch.equal(model.blended(1.0)(images), own)
        assert torch.allclose(model.blended(0.0, "a drawing of a {}.")(images), frozen, atol=1e-4)


def test_a_blend_serves_other_names_and_features(images: Tensor) -> None:
    model = made("coop").blended(0.5)
    names = ("kite", "goldfish")
    with torch.no_grad():
        other = model.with_classes(names)
        own, frozen = made("coop").with_classes(names), zero_shot(model).with_classes(names)
        assert torch.allclose(other(images), (own(images) + frozen(images)) / 2, atol=1e-4)
        assert torch.allclose(other.logits(model.image_features(images)), other(images), atol=1e-4)


def test_an_adapter_keeps_how_it_answers(images: Tensor, tmp_path: Path) -> None:
    model = made("coop").blended(0.25, ("a {}.", "the {}."))
    model.answers = replace(model.answers, temperature=2.5)
    path = model.save(tmp_path / "adapter.safetensors")
    loaded = adapt.load(path, model.backbone)
    assert loaded.answers == model.answers
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    assert read_header(made("coop").save(tmp_path / "plain.safetensors")).answers is None


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(AdaptError, match="expected the weight of the adapted model's logits, from 0 to 1"):
        made("coop").blended(share)


def test_a_backbone_without_names_has_nothing_to_blend_with() -> None:
    model = adapt.wrap(adapt.load_backbone("mini-vilt"), methods.DAS(skip=1, towers=["fusion"]), ("yes", "no"))
    with pytest.raises(AdaptError, match="has no zero-shot classifier to blend with"):
        model.blended(0.5)
