"""A stream's memory: it is the stream's own, it changes answers, and each call without one starts anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel, methods
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.methods.tda import Remembered, remember

NAMES = ("goldfish", "red_panda", "sea cucumber")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(open_clip) -> AdaptedModel:
    return adapt.wrap(open_clip, methods.TDA(), NAMES).eval()


def test_a_model_by_itself_remembers_nothing(model: AdaptedModel, images: Tensor) -> None:
    first = model(images)
    assert torch.equal(model(images), first)
    assert model.memory is None
    assert not torch.allclose(torch.cat([model(one) for one in images.split(1)]), first, atol=1e-3)


def test_two_streams_do_not_share_what_they_saw(model: AdaptedModel, images: Tensor) -> None:
    one, other = model.stream(), model.stream()
    expected = model(images)
    in_parts = torch.cat([one(part) for part in images.split(2)])
    assert torch.allclose(in_parts, expected, atol=1e-4)
    assert torch.allclose(other(images), expected, atol=1e-4)
    again = one(images)
    assert not torch.allclose(again, expected, atol=1e-3)


def test_evaluation_and_a_call_of_predict_are_streams(model: AdaptedModel, tiny_split: Split) -> None:
    scores = evaluate(model, tiny_split.test, workers=0)
    decoded = evaluate(model, tiny_split.test, workers=0, cache=False)
    paths = [item.path for item in tiny_split.test]
    found = model.predict(paths, batch_size=2)
    assert [each.class_name for each in found] == list(scores.predicted) == list(decoded.predicted)
    assert [each.probability for each in found] == pytest.approx(scores.confidence, abs=1e-4)
    assert decoded.confidence == pytest.approx(scores.confidence, abs=1e-4)


def test_views_stand_for_their_image(open_clip, images: Tensor) -> None:
    plain = adapt.wrap(open_clip, methods.TDA(), NAMES).eval()
    model = adapt.wrap(open_clip, methods.TDA(views=3, kept=0.25), NAMES).eval()
    assert torch.allclose(model(images[:, None].expand(-1, 4, -1, -1, -1)), plain(images), atol=1e-3)


def test_the_least_sure_image_makes_room() -> None:
    kept: list[Remembered] = []
    seen = [
        Remembered(torch.zeros(1), torch.zeros(1), torch.zeros(1), entropy) for entropy in (0.5, 0.3, 0.9, 0.3, 0.1)
    ]
    for image in seen:
        remember(kept, image, 2)
    assert [image.entropy for image in kept] == [0.1, 0.3]
    assert kept[1] is seen[1]  # of equals the older one
