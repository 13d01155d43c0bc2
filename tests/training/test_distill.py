"""Image features that are held to the frozen backbone's own while they learn."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import objective

from adapt import AdaptError, methods, wrap
from adapt.methods.base.step import total
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import ImageBatches, training_batches

SKIPPING: dict[str, Any] = {"skip": 1, "skipped": ["vision.1"]}


def _batches(model, items, **settings: Any) -> ImageBatches:
    chosen = TrainSettings(epochs=1, workers=0, augment="none", batch_size=6, **settings)
    batches = training_batches(model, items, chosen, 1, True, None)
    assert isinstance(batches, ImageBatches)
    return batches


def test_the_second_loss_is_one_minus_the_cosine(make_model, tiny_split) -> None:
    model = make_model("das", **SKIPPING)
    own = wrap(model.backbone, methods.ZeroShot(), model.class_names)
    images, items = next(_batches(model, tiny_split.train).epoch(0, 0))
    labels = tiny_split.task.labels(items, model.class_names)
    loss, right = objective(model, images, labels, distill=20)
    features = model.image_features(images)
    assert torch.equal(model.backbone_features(images), own.image_features(images))
    apart = 1 - F.cosine_similarity(features, own.image_features(images)).mean()
    plain, right_too = objective(model, images, labels)
    assert apart > 0.01
    torch.testing.assert_close(loss, plain + 20 * apart, rtol=1e-5, atol=0)
    assert torch.equal(right, right_too)
    loss.backward()
    expected = torch.autograd.grad(plain + 20 * apart, tuple(model.method.parameters()))
    for parameter, gradient in zip(model.method.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_where_nothing_has_changed_yet_there_is_none(make_model, tiny_split) -> None:
    model = make_model("lora", dropout=0.0)
    images, items = next(_batches(model, tiny_split.train).epoch(0, 0))
    batch = images, tiny_split.task.labels(items, model.class_names)
    (loss, _), (plain, _) = objective(model, *batch, distill=1000), objective(model, *batch)
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-3)  # 1000 roundings of a cosine


def test_features_stay_nearer_to_the_backbones(train, make_model, images: torch.Tensor) -> None:
    def cosine(distill: float) -> float:
        model = make_model("das", **SKIPPING)
        train(model, epochs=15, optimizer="adamw", lr=0.01, terms={"distill": distill} if distill else {})
        model.eval()
        with torch.no_grad():
            return float(F.cosine_similarity(model.image_features(images), model.backbone_features(images)).mean())

    assert cosine(100) > cosine(0) + 0.02


def test_the_backbones_features_of_one_batch_are_computed_once(make_model, tiny_split, monkeypatch) -> None:
    """Also where the method changes between two looks at it, as a search does."""
    model = make_model("das", **SKIPPING)
    computed: list[int] = []
    whole = type(model).backbone_features

    def counted(self, images):
        computed.append(len(images))
        return whole(self, images)

    monkeypatch.setattr(type(model), "backbone_features", counted)
    batches = list(_batches(model, tiny_split.train).epoch(0, 0))[:2]
    first, second = (tiny_split.task.step(model, items, images) for images, items in batches)
    losses = [total(model.losses(step.again(), {"distill": 20})[0]) for step in (first, first, second)]
    assert len(computed) == 2
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[1], losses[2])


def test_the_log_keeps_the_terms_apart(train, make_model, tmp_path) -> None:
    history = train(make_model("das", **SKIPPING), out=tmp_path / "run", terms={"distill": 2.0}).history
    assert all(entry["loss"] == pytest.approx(sum(entry["terms"].values())) for entry in history)
    assert {tuple(entry["terms"]) for entry in history} == {("cross_entropy", "distill")}
    assert "terms" not in train(make_model("coop", n_ctx=4)).history[0]


@pytest.mark.parametrize(
    ("terms", "message"),
    [({"distil": 1.0}, "did you mean 'distill'"), ({"distill": -1.0}, "expected a positive number")],
)
def test_terms_that_make_no_sense(terms, message) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(epochs=1, terms=terms)


@pytest.mark.full
def test_a_search_is_rewarded_by_the_loss_that_is_trained(train, make_model, tiny_split, tmp_path) -> None:
    subsets: list[Any] = []

    def losses(distill: float) -> torch.Tensor:
        model = make_model("das", skip=1, search_epochs=2, warmup_epochs=0, turn=1, draws=2, gate_lr=1e-12)
        out = tmp_path / f"{distill:g}"
        train(
            model,
            val_set=tiny_split.val,
            out=out,
            lr=1e-12,
            weight_decay=0,
            terms={"distill": distill} if distill else {},
        )
        trace = json.loads((out / "search.json").read_text())["trace"]
        subsets.append([entry["subsets"] for entry in trace])
        return torch.tensor([entry["losses"] for entry in trace])

    plain, once, thrice = map(losses, (0, 1, 3))
    assert subsets[0] == subsets[1] == subsets[2]
    assert plain.shape == (6, 2)
    assert (once - plain).min() > 0.01
    torch.testing.assert_close(thrice - plain, 3 * (once - plain), rtol=1e-3, atol=1e-5)


def test_a_model_without_such_features_refuses_it(make_model, tiny_split, train) -> None:
    with pytest.raises(AdaptError, match=r"train\.terms has distill: 2, but coop on .* does not change image features"):
        train(make_model("coop", n_ctx=4), terms={"distill": 2})
