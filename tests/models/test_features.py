"""Features of a data set: never those of a method in the place of the backbone's."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_backbones
import torch

import adapt
from adapt import AdaptError, methods
from adapt.data import Split
from adapt.models.features import item_features, keeps_features, view_features


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_method_that_edits_the_tower_gets_none(cache: Path, tiny_split: Split) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.MaPLe(depth=2), tiny_split.class_names)
    for features in (item_features, view_features):
        with pytest.raises(AdaptError, match="maple edits the vision tower"):
            features(model, tiny_split.train, workers=0, progress=None)
    assert not list(cache.rglob("*")) if cache.exists() else True


def test_a_method_that_reads_images_is_not_served(tiny_split: Split) -> None:
    class Reading(methods.CoOp):
        reads = frozenset({"images"})

    backbone = tiny_backbones.backbone("open_clip")
    assert keeps_features(adapt.wrap(backbone, methods.CoOp(n_ctx=4), tiny_split.class_names), cache=True)
    assert not keeps_features(adapt.wrap(backbone, Reading(n_ctx=4), tiny_split.class_names), cache=True)


def test_views_are_those_that_predicting_draws(cache: Path, tiny_split: Split) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.TPT(views=3), tiny_split.class_names)
    found = view_features(model, tiny_split.test, workers=0, progress=None)
    transform = model.transform()
    with torch.no_grad():
        for item, features in zip(tiny_split.test, found):
            torch.testing.assert_close(features, model.image_features(transform(adapt.data.open_image(item))))
    assert (found[0, 1:] - found[1, 1:]).abs().max() > 1e-3
    for number in range(1, 4):  # each is another view of the image
        assert (found[:, number] - found[:, number - 1]).abs().amax(-1).min() > 1e-4
