"""Features from the cache are those of the backbone's own way to read an image, whoever else has filled the cache."""

from __future__ import annotations

import pytest
import tiny_backbones
from torchvision.transforms import v2

from adapt import AdaptedModel, Backbone, fit, methods, wrap
from adapt.backbones.preprocess import Preprocess
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate

HALF = (0.5, 0.5, 0.5)
CHANGES = {
    "mean": {"mean": (0.1, 0.5, 0.9)},
    "std": {"std": (0.2, 0.2, 0.2)},
    "interpolation": {"interpolation": "nearest"},
}


def reader(**changes: object) -> AdaptedModel:
    """Zero-shot by the one tiny CLIP, which reads images this way."""
    preprocess = Preprocess(**{"size": tiny_backbones.IMAGE, "mean": HALF, "std": HALF} | changes)
    transform: v2.Compose = preprocess.evaluation()
    model = tiny_backbones.backbone("open_clip").model
    backbone = Backbone.from_open_clip(model, tiny_backbones.clip_tokenizer(), transform)
    return wrap(backbone, methods.ZeroShot(), ("goldfish", "red_panda", "sea cucumber"))


@pytest.mark.parametrize("change", CHANGES)
def test_another_way_to_read_an_image_has_features_of_its_own(change: str, tiny_split: Split) -> None:
    sure = [
        evaluate(model, tiny_split.test, workers=0, cache=cache).confidence
        for model in (reader(), reader(**CHANGES[change]))
        for cache in (True, False)
    ]
    assert sure[0] == pytest.approx(sure[1], rel=1e-5)
    assert sure[2] == pytest.approx(sure[3], rel=1e-5)
    assert sure[0] != pytest.approx(sure[2], rel=1e-3)


def test_views_are_augmented_by_the_backbone_that_trains(tiny_split: Split) -> None:
    """The first step's loss over a view of each image, on a cache that another reader has filled."""
    losses = []
    for change in ({}, CHANGES["mean"], {}):
        model = wrap(reader(**change).backbone, methods.CoOp(ctx_init="a photo of a"), tiny_split.class_names)
        result = fit(model, tiny_split.train, epochs=1, batch_size=12, views=1, workers=0, seed=1, progress=False)
        losses.append(result.history[0]["loss"])
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
