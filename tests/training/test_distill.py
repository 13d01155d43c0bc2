"""Image features that are held to the frozen backbone's own while they learn."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from adapt import AdaptError, methods, wrap
from adapt.training.batches import ImageBatches, training_batches
from adapt.training.settings import TrainSettings

SKIPPING: dict[str, Any] = {"skip": 1, "skipped": ["vision.1"]}


def _batches(model, items, **settings: Any) -> ImageBatches:
    chosen = TrainSettings(epochs=1, workers=0, augment="none", batch_size=6, **settings)
    batches = training_batches(model, items, chosen, 1, True, None)
    assert isinstance(batches, ImageBatches)
    return batches


def test_the_second_loss_is_one_minus_the_cosine(make_model, tiny_split) -> None:
    model = make_model("das", **SKIPPING)
    own = wrap(model.backbone, methods.ZeroShot(), model.class_names)
    batches = _batches(model, tiny_split.train, distill=20)
    images, labels = next(batches.epoch(0, 0))
    loss, right = batches.objective(model, images, labels)
    features = model.image_features(images)
    assert torch.equal(model.backbone_features(images), own.image_features(images))
    apart = 1 - F.cosine_similarity(features, own.image_features(images)).mean()
    plain, right_too = model.objective(images, labels)
    assert apart > 0.01
    torch.testing.assert_close(loss, plain + 20 * apart, rtol=1e-5, atol=0)
    assert torch.equal(right, right_too)
    loss.backward()
    expected = torch.autograd.grad(plain + 20 * apart, tuple(model.method.parameters()))
    for parameter, gradient in zip(model.method.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_where_nothing_has_changed_yet_there_is_none(make_model, tiny_split) -> None:
    model = make_model("lora", dropout=0.0)
    batches = _batches(model, tiny_split.train, distill=1000)
    images, labels = next(batches.epoch(0, 0))
    (loss, _), (plain, _) = batches.objective(model, images, labels), model.objective(images, labels)
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-3)  # 1000 roundings of a cosine


def test_features_stay_nearer_to_the_backbones(train, make_model, images: torch.Tensor) -> None:
    def cosine(distill: float) -> float:
        model = make_model("das", **SKIPPING)
        train(model, epochs=15, optimizer="adamw", lr=0.01, distill=distill)
        model.eval()
        with torch.no_grad():
            return float(F.cosine_similarity(model.image_features(images), model.backbone_features(images)).mean())

    assert cosine(100) > cosine(0) + 0.02


def test_the_backbones_features_of_one_batch_are_computed_once(make_model, tiny_split, monkeypatch) -> None:
    model = make_model("das", **SKIPPING)
    batches, fresh = (_batches(model, tiny_split.train, distill=20) for _ in range(2))
    computed: list[int] = []
    whole = type(model).backbone_features

    def counted(self, images):
        computed.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(type(model), "backbone_features", counted)
    first, second = list(batches.epoch(0, 0))[:2]
    losses = [batches.objective(model, *batch)[0] for batch in (first, first, second)]
    assert len(computed) == 2
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[2], fresh.objective(model, *second)[0])


def test_a_search_is_rewarded_by_the_loss_that_is_trained(train, make_model, tiny_split, tmp_path) -> None:
    subsets: list[Any] = []

    def losses(distill: float) -> torch.Tensor:
        model = make_model("das", skip=1, search_epochs=2, warmup_epochs=0, turn=1, draws=2, gate_lr=1e-12)
        out = tmp_path / f"{distill:g}"
        train(model, val_set=tiny_split.val, out=out, lr=1e-12, weight_decay=0, distill=distill)
        trace = json.loads((out / "search.json").read_text())["trace"]
        subsets.append([entry["subsets"] for entry in trace])
        return torch.tensor([entry["losses"] for entry in trace])

    plain, once, thrice = map(losses, (0, 1, 3))
    assert subsets[0] == subsets[1] == subsets[2]
    assert plain.shape == (6, 2)
    assert (once - plain).min() > 0.01
    torch.testing.assert_close(thrice - plain, 3 * (once - plain), rtol=1e-3, atol=1e-5)


def test_a_model_without_such_features_refuses_it(make_model, tiny_split, train) -> None:
    with pytest.raises(AdaptError, match=r"train\.distill is 2, and coop on .* changes no image features"):
        train(make_model("coop", n_ctx=4), distill=2)
