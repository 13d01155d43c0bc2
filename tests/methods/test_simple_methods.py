"""Zero-shot classification, the linear probe, and how methods are found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods

NAMES = ("goldfish", "red_panda", "sea cucumber")


def test_methods_are_the_files_of_the_package() -> None:
    assert {"coop", "linear_probe", "lora", "zero_shot"} <= set(methods.names())
    assert [methods.find(name).name for name in methods.names()] == methods.names()
    assert methods.find("coop") is methods.CoOp


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(AdaptError, match="unknown method 'lorra'; did you mean 'lora'"):
        methods.find("lorra")


def test_an_ensemble_averages_unit_features(open_clip: Backbone) -> None:
    templates = ("a photo of a {}.", "{}", "art of the {}, drawn by hand.")
    parts = [adapt.wrap(open_clip, methods.ZeroShot(each), NAMES).class_features() for each in templates]
    together = adapt.wrap(open_clip, methods.ZeroShot(templates), NAMES).class_features()
    assert scaled(together, F.normalize(torch.stack(parts).mean(0), dim=-1)) < 1e-6


def test_a_template_needs_a_place_for_the_name() -> None:
    for make in (methods.ZeroShot, lambda template: methods.LoRA(template=template)):
        with pytest.raises(AdaptError, match=r"must contain .* where the class name goes"):
            make("a photo")


@pytest.fixture
def probe(open_clip: Backbone) -> adapt.AdaptedModel:
    return adapt.wrap(open_clip, methods.LinearProbe(), NAMES)


def features(classes: int, spread: float) -> tuple[Tensor, Tensor]:
    labels = torch.arange(classes).repeat(20)
    return F.normalize(torch.eye(classes, 64)[labels] + spread * torch.randn(len(labels), 64), dim=-1), labels


def test_the_probe_chooses_its_strength_on_validation_images(probe: adapt.AdaptedModel) -> None:
    train, val = features(3, 0.25), features(3, 0.25)
    chosen = probe.method.solve(train, val)
    reached = float((probe.logits(val[0]).argmax(-1) == val[1]).float().mean())
    assert chosen["val_accuracy"] == pytest.approx(reached)
    assert reached > 0.8
    for strength in methods.linear_probe.STRENGTHS[::7]:
        other = adapt.wrap(probe.backbone, methods.LinearProbe(strength=strength), NAMES)
        other.method.solve(train, None)
        assert float((other.logits(val[0]).argmax(-1) == val[1]).float().mean()) <= reached


def test_the_probe_is_scikit_learns_solution(probe: adapt.AdaptedModel) -> None:
    from sklearn.linear_model import LogisticRegression

    train = features(3, 0.25)
    model = adapt.wrap(probe.backbone, methods.LinearProbe(strength=2.0), NAMES)
    model.method.solve(train, None)
    solver = LogisticRegression(C=2.0, max_iter=2000).fit(*(tensor.numpy() for tensor in train))
    expected = torch.from_numpy(solver.predict_proba(train[0].numpy())).float()
    assert scaled(model.logits(train[0]).softmax(-1), expected) < 1e-3


def test_two_classes_have_a_row_each(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.LinearProbe(strength=10.0), NAMES[:2])
    train = features(2, 0.05)
    model.method.solve(train, None)
    assert model.method.weight.shape == (2, 64)
    assert torch.equal(model.logits(train[0]).argmax(-1), train[1])
