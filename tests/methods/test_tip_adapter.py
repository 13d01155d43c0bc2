"""The search of Tip-Adapter's alpha and beta: the table's own numbers, without comparing images and keys again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import adapt
from adapt.methods import tip_adapter
from adapt.methods.base import Choice

IMAGES, COUNTS = 23, (4, 1, 4, 0, 7)  # keys of each class
NAMES = tuple("abcde")
CHOICES = {"beta": Choice((0.5, 1.0, 5.5), usual=1.0), "alpha": Choice((0.1, 2.0), usual=1.0)}


class Training:
    def __init__(self, model: Any, images: Tensor) -> None:
        self.model = self.classifier = model
        self._images = images

    def features(self, part: str) -> Tensor:
        assert part == "val"
        return self._images


@pytest.fixture
def training(open_clip: adapt.Backbone) -> Training:
    """A table whose keys are in no order, and whose classes have different numbers of them."""
    generator = torch.Generator().manual_seed(0)
    width = open_clip.embed_dim
    model = adapt.wrap(open_clip, tip_adapter.TipAdapter(keys=sum(COUNTS)), NAMES).eval()
    labels = torch.arange(len(NAMES)).repeat_interleave(torch.tensor(COUNTS))
    model.method.labels = labels[torch.randperm(len(labels), generator=generator)]
    model.method.keys = F.normalize(torch.randn(len(labels), width, generator=generator), dim=-1)
    return Training(model, F.normalize(torch.randn(IMAGES, width, generator=generator), dim=-1))


def searched(training: Training) -> dict[tuple[float, float], Tensor]:
    method = training.model.method
    return {(each["beta"], each["alpha"]): logits for each, logits in method.trials(training, CHOICES, learned=True)}


@pytest.mark.parametrize(("kept", "at_once"), [(2**28, 2**24), (2**28, 5 * 16), (10, 5 * 16), (10, 1)])
def test_the_search_has_the_logits_of_each_setting(
    kept: int, at_once: int, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tip_adapter, "KEPT", kept)
    monkeypatch.setattr(tip_adapter, "AT_ONCE", at_once)
    model, found = training.model, searched(training)
    assert list(found) == [(beta, alpha) for beta in (0.5, 1.0, 5.5) for alpha in (0.1, 2.0)]
    for (beta, alpha), logits in found.items():
        model.method.config = model.method.config.model_copy(update={"beta": beta, "alpha": alpha})
        with torch.no_grad():
            assert scaled(logits, model.logits(training.features("val"))) < 1e-6


def test_images_are_compared_with_keys_once_for_all_settings(training: Training) -> None:
    with torch.no_grad():
        training.model.class_features()  # which are known from here on
    width = training.model.backbone.embed_dim
    with FlopCounterMode(display=False) as counter:
        searched(training)
    assert counter.get_total_flops() == 2 * IMAGES * width * (sum(COUNTS) + len(NAMES))
