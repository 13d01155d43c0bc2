"""Accuracy: what is counted, by which way, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import numbers

from adapt import AdaptedModel, AdaptError, Backbone, methods, wrap
from adapt.data import Split, open_image
from adapt.evaluation.evaluate import evaluate

_METHODS: dict[str, dict[str, Any]] = {"zero_shot": {}, "coop": {"n_ctx": 4}, "lora": {}, "linear_probe": {}}


def _model(backbone: Backbone, split: Split, name: str) -> AdaptedModel:
    """A model whose parameters are all random, so that no answer is trivial."""
    model = wrap(backbone, methods.find(name)(**_METHODS[name]), split.class_names)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", _METHODS)
def test_it_counts_what_the_model_itself_says(open_clip: Backbone, tiny_split: Split, name: str, cache: bool) -> None:
    model = _model(open_clip, tiny_split, name).eval()
    transform = open_clip.transform(train=False)
    with torch.inference_mode():
        logits = model(torch.stack([transform(open_image(item)) for item in tiny_split.train]))
    expected = logits.argmax(-1)
    scores = evaluate(model, tiny_split.train, cache=cache, workers=0)
    assert list(scores.predicted) == [tiny_split.class_names[label] for label in expected]
    assert torch.allclose(torch.tensor(scores.confidence), logits.softmax(-1).max(-1).values, atol=1e-5)
    assert (scores.paths[3], scores.actual[3]) == (tiny_split.train[3].path, tiny_split.train[3].answer)
    labels = torch.tensor(numbers(tiny_split.train, tiny_split.class_names))
    assert scores.accuracy == (expected == labels).sum().item() / 12
    assert scores.images == 12


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_it_was(open_clip: Backbone, tiny_split: Split, training: bool) -> None:
    model = _model(open_clip, tiny_split, "lora").train(training)
    first, second = (evaluate(model, tiny_split.test, workers=0).predicted for _ in range(2))
    assert first == second  # dropout is off
    assert model.training is model.method.training is training


@pytest.mark.parametrize("name", ["coop", "lora"])
def test_progress_counts_the_images(open_clip: Backbone, tiny_split: Split, name: str) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(_model(open_clip, tiny_split, name), tiny_split.test, workers=0, progress=lambda *call: calls.append(call))
    assert calls == [(6, 6)]


def test_another_template_reads_the_features_once(open_clip: Backbone, tiny_split: Split) -> None:
    evaluate(wrap(open_clip, methods.ZeroShot(), tiny_split.class_names), tiny_split.test, workers=0)
    calls: list[tuple[int, int]] = []
    other = wrap(open_clip, methods.ZeroShot("{} texture."), tiny_split.class_names)
    evaluate(other, tiny_split.test, workers=0, progress=lambda *call: calls.append(call))
    assert calls == []


def test_labels_of_other_classes_are_refused(open_clip: Backbone, tiny_split: Split) -> None:
    model = wrap(open_clip, methods.ZeroShot(), tiny_split.class_names[:2])
    with pytest.raises(AdaptError, match="has the class 'sea cucumber', which is not a class of the model"):
        evaluate(model, tiny_split.test)


def test_no_images_are_refused(open_clip: Backbone, tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match="there are no images, because this split of the data is empty"):
        evaluate(_model(open_clip, tiny_split, "coop"), ())


@pytest.mark.usefixtures("in_workers")
@pytest.mark.parametrize("name", ["coop", "lora"])
def test_an_unreadable_image_is_named(open_clip: Backbone, tiny_split: Split, name: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    items = [*tiny_split.test, replace(tiny_split.test[0], paths=(str(broken),))]
    with pytest.raises(AdaptError, match=f"image '{broken}' cannot be decoded"):
        evaluate(_model(open_clip, tiny_split, name), items, workers=1)
