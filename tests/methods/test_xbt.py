"""XBT: what its projection is, that an old index is searched through it, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import relative, scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, fit, methods
from adapt.data import Item, Split
from adapt.methods.base import contrast
from adapt.methods.xbt import procrustes
from adapt.retrieval.index import index_images, index_texts, slerp
from adapt.tasks.pairs import Pair
from adapt.training import fitting

TEXTS = [f"{adjective} {noun} {place}" for adjective in ("a red", "a small", "my", "the") for noun in (
    "goldfish", "lime tree", "sky", "tin can", "panda") for place in ("at home", "in the sun", "of glass")]  # fmt: skip


def texts_alone(texts: list[str]) -> tuple[Item, ...]:
    return tuple(Item.of(text=text) for text in texts)


def new(old: Path | str, **settings: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(tiny_backbones.backbone("open_clip"), methods.XBT(old=str(old), **settings), ())


def trained(old: Path | str, **settings: Any) -> AdaptedModel:
    model = new(old, **settings)
    fit(model, texts_alone(TEXTS), progress=False)
    return model.eval()


def by_itself(spec: Path) -> AdaptedModel:
    return adapt.wrap(adapt.load_backbone(str(spec)), methods.ZeroShot(), ("object",)).eval()


def mean_cosine(model: AdaptedModel, old: AdaptedModel, texts: list[str]) -> float:
    found, wanted = model.text_features(texts, edited=True), old.text_features(texts)
    return float((found * wanted).sum(-1).mean())


def contrast_of(model: AdaptedModel, old: AdaptedModel) -> float:
    """What the perceptron learns to make smaller: how well each text's old feature is told from the others'."""
    cosines = model.text_features(TEXTS, edited=True) @ old.text_features(TEXTS).T
    return float(contrast(old.backbone.logit_scale * cosines))


@pytest.mark.parametrize(("of", "to"), [(12, 5), (5, 12), (6, 6)])
def test_procrustes_finds_the_rotation_that_was_made(of: int, to: int) -> None:
    rotation = torch.linalg.qr(torch.randn(max(of, to), min(of, to))).Q
    rotation = rotation if of >= to else rotation.T
    inside = torch.randn(40, min(of, to)) @ (rotation.T if of >= to else torch.eye(of))  # what the map can keep
    found = procrustes(inside, inside @ rotation)
    assert torch.allclose(found, rotation, atol=1e-4)
    assert torch.allclose(found.T @ found if of >= to else found @ found.T, torch.eye(min(of, to)), atol=1e-4)


def test_features_of_texts_and_images_lie_in_the_old_space(model_folder: Path, images: Tensor) -> None:
    model, old = trained(model_folder), by_itself(model_folder)
    backbone = model.backbone
    weight = model.method.weight.detach()
    assert weight.shape == (backbone.embed_dim, old.backbone.embed_dim)
    with torch.no_grad():
        for found, own in (
            (model.image_features(images), model.backbone_features(images)),
            (model.encode_texts(TEXTS[:3]), model.text_features(TEXTS[:3])),
            (model.with_classes(TEXTS[:3]).class_features(), model.text_features(TEXTS[:3])),
        ):
            assert torch.allclose(found, F.normalize(own @ weight, dim=-1), atol=1e-5)
    chance = 1 / 32**0.5
    held_out = ["a tin can of limes", "the small sun", "my glass home"]
    assert mean_cosine(model, old, held_out) > chance + 0.3


def test_an_old_index_is_searched_without_the_old_backbone(
    model_folder: Path, tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, old = trained(model_folder), by_itself(model_folder)
    index = index_images(old, [item.path for item in tiny_split.test])
    path = model.save(tmp_path / "xbt.safetensors")
    monkeypatch.setattr(fitting, "load_backbone", lambda *_: pytest.fail("the old backbone is needed no more"))
    loaded = adapt.load(path, model.backbone)
    assert isinstance(loaded, AdaptedModel)
    index.check(loaded)
    cosines, _ = index.nearest(index_texts(loaded, ["a goldfish"]).features, 3)
    assert cosines.isfinite().all()
    with pytest.raises(AdaptError, match="made without an adapter"):
        index_texts(adapt.wrap(model.backbone, methods.ZeroShot(), ("object",)), TEXTS).check(loaded)
    index_texts(loaded, TEXTS).check(loaded)  # one of its own
    with pytest.raises(AdaptError, match="made with an adapter"):
        index_texts(loaded, TEXTS).check(adapt.wrap(model.backbone, methods.ZeroShot(), ("object",)))


def test_an_index_of_another_backbone_is_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    other = adapt.wrap(tiny_backbones.backbone("hf_clip"), methods.ZeroShot(), ("object",))
    with pytest.raises(AdaptError, match=f"different backbone, .*, and so does {model_folder} of the adapter's space"):
        index_texts(other, TEXTS).check(trained(model_folder))


@pytest.mark.full
def test_a_perceptron_begins_at_the_closed_form_and_learns_texts(model_folder: Path) -> None:
    old = by_itself(model_folder)
    closed = mean_cosine(trained(model_folder), old, TEXTS)
    still = mean_cosine(trained(model_folder, hidden=8, lr=1e-9), old, TEXTS)
    assert still == pytest.approx(closed, abs=1e-4)
    learned = trained(model_folder, hidden=64, noise=0.0, epochs=60, batch_size=16)
    assert contrast_of(learned, old) < contrast_of(trained(model_folder), old) - 0.1
    again = trained(model_folder, hidden=64, noise=0.0, epochs=60, batch_size=16)
    assert torch.equal(again.method.fc1.weight, learned.method.fc1.weight)  # by the seed


def test_whether_it_is_compatible_is_said(model_folder: Path, tiny_split: Split, tmp_path: Path) -> None:
    pairs = tuple(replace(item, label=Pair(), text=text) for item, text in zip(tiny_split.val, TEXTS))
    model = new(model_folder)
    result = fit(model, texts_alone(TEXTS), val_set=pairs, progress=False)
    found = result.metrics["compatible"]
    assert found["images"] == len(pairs)
    old = by_itself(model_folder)
    images = [index_images(each, [item.path for item in pairs]).features for each in (model, old)]
    texts = [index_texts(each, [item.text for item in pairs]).features for each in (model, old)]
    right = torch.arange(len(pairs))

    def share(queries: Tensor, gallery: Tensor) -> float:
        return float((queries @ gallery.T).argmax(-1).eq(right).double().mean())

    assert found["text_to_image"]["new in old"] == share(texts[0], images[1])
    assert found["text_to_image"]["old in old"] == share(texts[1], images[1])
    assert found["image_to_text"]["new in old"] == share(images[0], texts[1])
    assert f"on {len(pairs)} held-out images" in str(result)
    assert "compatible" in str(result)
    assert "compatible unknown: " in str(fit(new(model_folder), texts_alone(TEXTS), progress=False))


def test_class_names_serve_as_texts(model_folder: Path, tiny_split: Split) -> None:
    model = adapt.wrap(
        tiny_backbones.backbone("open_clip"),
        methods.XBT(old=str(model_folder), fewest=3, template="a {}."),
        tiny_split.class_names,
    )
    result = fit(model, tiny_split.train, tiny_split.test, val_set=tiny_split.val, progress=False)
    texts = [f"a {name.replace('_', ' ')}." for name in tiny_split.class_names]
    expected = procrustes(model.text_features(texts), by_itself(model_folder).text_features(texts))
    assert torch.allclose(model.method.weight, expected, atol=1e-4)
    assert 0 <= result.metrics["compatible"]["text_to_image"]["new in old"] <= 1


def test_too_few_texts_and_wrong_backbones_are_refused(model_folder: Path) -> None:
    few = texts_alone(TEXTS[:31])
    with pytest.raises(
        AdaptError, match=r"31 different texts, and a feature of .*tiny has 32 values: give at least 32"
    ):
        fit(new(model_folder), few, progress=False)
    fit(new(model_folder, fewest=31), few, progress=False)
    with pytest.raises(AdaptError, match=r"the text 'very very .* 77"):
        fit(new(model_folder), texts_alone([*TEXTS, "very " * 99]), progress=False)
    with pytest.raises(AdaptError, match="unknown backbone 'nothing'"):
        trained("nothing")
    with pytest.raises(
        AdaptError, match="mini-vilt has no comparable features of texts and images: name a dual encoder"
    ):
        trained("mini-vilt")
    space = {"backbone": "", "fingerprint": "0", "reading": "{}", "size": 32}
    with pytest.raises(AdaptError, match=r"method\.space describes another backbone than .*tiny"):
        fit(new(model_folder, space=space), texts_alone(TEXTS), progress=False)


def test_slerp_keeps_to_the_arc() -> None:
    old, now = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])
    third = slerp(old, now, 1 / 3)
    assert torch.allclose(third, torch.tensor([[3**0.5 / 2, 0.5, 0]]), atol=1e-6)
    assert torch.allclose(slerp(old, now, 0.0), old, atol=1e-6)
    assert torch.allclose(slerp(old, now, 1.0), now, atol=1e-6)
    assert torch.allclose(slerp(old, old, 0.5), old, atol=1e-6)  # no angle to divide by
    assert slerp(old, -old, 0.3).isfinite().all()


def test_the_perceptron_of_xbt_by_its_formula() -> None:
    method = methods.XBT(old="other", hidden=5, noise=0.3, epochs=1, batch_size=8)
    adapt.wrap(tiny_backbones.backbone("open_clip"), method, ())
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    size = len(method.weight)
    rows = F.normalize(torch.randn(8, size), dim=-1)
    tensors = [each.double() for each in method.parameters()]
    weight, fc1, bias1, fc2, bias2 = tensors
    bent = F.gelu(rows.double() @ fc1.T + bias1) @ fc2.T + bias2
    assert scaled(method.project(3 * rows), rows.double() @ weight + bent) < 1e-5


@pytest.mark.parametrize("noise", [0.3, None])
def test_a_step_of_xbts_perceptron(noise: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW's first step is by the sign of the gradient, which is that of the formula."""
    method = methods.XBT(old="other", hidden=5, noise=noise, epochs=1, batch_size=8, lr=0.01)
    adapt.wrap(tiny_backbones.backbone("open_clip"), method, ())
    size = len(method.weight)
    rows, targets = (F.normalize(torch.randn(8, size), dim=-1) for _ in range(2))
    drawn, order = torch.randn(8, size), torch.randperm(8)
    monkeypatch.setattr(torch, "randn_like", lambda given: drawn)
    monkeypatch.setattr(torch, "randperm", lambda count: order)
    own = {key: each.detach().double().clone().requires_grad_() for key, each in method.named_parameters()}
    scale = 0.3 if noise else 0.04 * math.sqrt(768 / size)
    shaken = F.normalize(rows[order].double() + scale * drawn, dim=-1)
    bent = F.gelu(shaken @ own["fc1.weight"].T + own["fc1.bias"]) @ own["fc2.weight"].T + own["fc2.bias"]
    cosines = F.normalize(shaken @ own["weight"] + bent, dim=-1) @ targets[order].double().T
    right = torch.arange(8)
    both = (F.cross_entropy(20 * cosines, right) + F.cross_entropy(20 * cosines.T, right)) / 2
    gradients = torch.autograd.grad(1 - cosines.diagonal().mean() + both, list(own.values()))
    found: dict[str, Tensor] = {}
    step = torch.optim.AdamW.step

    def stepping(self: Any, *given: Any) -> Any:
        found.update({key: each.grad.clone() for key, each in method.named_parameters()})
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    method._learn(rows, targets, 20.0)
    for (key, _), gradient in zip(own.items(), gradients):
        assert relative(found[key], gradient) < 1e-4, key


def test_the_closed_form_of_xbt_turns_the_new_features_to_the_old_ones() -> None:
    rows, targets = torch.randn(40, 6, dtype=torch.double), torch.randn(40, 4, dtype=torch.double)
    found = procrustes(rows, targets)
    assert torch.allclose(found.T @ found, torch.eye(4, dtype=torch.double), atol=1e-10)
    symmetric = found.T @ rows.T @ targets  # the polar factor leaves a symmetric, positive semidefinite one
    assert torch.allclose(symmetric, symmetric.T, atol=1e-8)
    assert torch.linalg.eigvalsh(symmetric).min() > -1e-8


def test_the_rate_of_xbts_perceptron_falls_by_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    method = methods.XBT(old="other", hidden=5, noise=0.0, epochs=2, batch_size=4, lr=0.01)
    adapt.wrap(tiny_backbones.backbone("open_clip"), method, ())
    rates, step = [], torch.optim.AdamW.step

    def stepping(self: Any, *given: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    rows = F.normalize(torch.randn(7, len(method.weight)), dim=-1)
    method._learn(rows, rows, 20.0)
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * number / 4)) for number in range(4)])
