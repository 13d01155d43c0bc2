"""Test-time prompt tuning: views are asked for, the start stays, every image is answered for itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import tiny_backbones
import torch
from checks import assert_untouched, snapshot
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate

NAMES = ("goldfish", "red_panda", "sea cucumber")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(open_clip) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(open_clip, methods.TPT(views=7, kept=0.5, lr=0.05), NAMES).eval()


@pytest.fixture
def views(images: Tensor) -> Tensor:
    """Eight views `(2, 8, 3, h, w)` of each of two images."""
    torch.manual_seed(1)
    return images[:2, None] + 0.5 * torch.randn(2, 8, *images.shape[1:])


def test_every_image_is_answered_for_itself(model: AdaptedModel, views: Tensor) -> None:
    before = snapshot(model.backbone.model)
    start = model.method.ctx.detach().clone()
    both = model(views)
    assert both.shape == (2, 3)
    assert not both.requires_grad
    assert torch.allclose(both[1:], model(views[1:]), atol=1e-5)
    plain = model.step(views[:, 0], torch.zeros(2)).logits
    assert (both - plain).abs().max() > 1e-3  # a step was taken
    assert torch.equal(model.method.ctx, start)
    assert_untouched(model.backbone.model, before)


def test_threads_do_not_see_each_others_steps(model: AdaptedModel, views: Tensor) -> None:
    expected = [model(views[:1]), model(views[1:])]
    found: list[Tensor | None] = [None] * 8

    def ask(place: int) -> None:
        found[place] = model(views[place % 2 :][:1])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(each, expected[place % 2], atol=1e-5) for place, each in enumerate(found))


def test_an_image_without_views_is_refused(model: AdaptedModel, images: Tensor) -> None:
    with pytest.raises(AdaptError, match=r"tpt reads 8 views of each image, but the batch has 1: call model\.predict"):
        model(images)


def test_it_is_evaluated_and_predicts_alike_with_and_without_the_cache(model: AdaptedModel, tiny_split: Split) -> None:
    cached, decoded = (evaluate(model, tiny_split.test, workers=0, cache=cache) for cache in (True, False))
    again = evaluate(model, tiny_split.test, workers=0, cache=True)
    assert cached.confidence == again.confidence
    assert cached.predicted == decoded.predicted
    assert cached.confidence == pytest.approx(decoded.confidence, abs=1e-5)
    predicted = model.predict([item.path for item in tiny_split.test])
    assert [each.class_name for each in predicted] == list(decoded.predicted)
    assert [each.probability for each in predicted] == pytest.approx(decoded.confidence, abs=1e-5)


def test_it_serves_without_training_and_is_saved(tiny_split: Split, model: AdaptedModel, tmp_path: Path) -> None:
    result = adapt.fit(model, tiny_split.train, tiny_split.test, out=tmp_path / "run", progress=False)
    assert result.metrics["adapted"]["images"] == len(tiny_split.test)
    loaded = adapt.load(result.adapter, model.backbone)
    image = tiny_split.test[0].path
    assert loaded.predict(image)[0].probability == pytest.approx(model.predict(image)[0].probability, abs=1e-6)
    assert loaded.with_classes(["a", "b"]).predict(image)[0].class_name in ("a", "b")


def test_its_start_can_be_learned(open_clip, tiny_split: Split) -> None:
    torch.manual_seed(0)
    model = adapt.wrap(open_clip, methods.TPT(views=3, learn=True), NAMES)
    start = model.method.ctx.detach().clone()
    how = {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0, "progress": False}
    result = adapt.fit(model, tiny_split.train, tiny_split.test, **how)
    assert result.metrics["steps"] == 3
    assert not torch.equal(model.method.ctx, start)


@pytest.mark.full
def test_it_answers_in_half_precision_compiled_and_frozen(open_clip, views: Tensor) -> None:
    model = adapt.wrap(open_clip, methods.TPT(views=7, kept=0.5, lr=0.05), NAMES).eval()
    expected = model(views)
    compiled = torch.compile(model, backend="eager")(views)
    assert torch.allclose(compiled, expected, atol=1e-5)
    model.requires_grad_(False)
    assert torch.equal(model(views), expected)
    assert not model.method.ctx.requires_grad
    half = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.TPT(views=7, kept=0.5), NAMES).eval().half()
    assert half(views.half()).isfinite().all()


def test_another_number_of_views_is_refused(model: AdaptedModel, views: Tensor) -> None:
    with pytest.raises(AdaptError, match="reads 8 views of each image, but the batch has 3"):
        model(views[:, :3])
