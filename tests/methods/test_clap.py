"""CLAP: which images set a class's penalty, and what its adapter holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import Backbone, methods

NAMES = ("goldfish", "red_panda", "sea cucumber")
LABELS = torch.tensor([0, 2, 2, 1, 2, 0])  # not as many of each class


class Given:
    """A training with features of images as they are, `(n, e)`, and of random views of them, `(n, views, e)`."""

    def __init__(self, model: Any, images: Tensor, random_views: Tensor, views: int | None) -> None:
        self.classifier, self.settings = model, SimpleNamespace(views=views)
        self._images, self._views = images, random_views

    def features(self, part: str, views: int = 0) -> Tensor:
        return self._views[:, :views] if views else self._images

    def labels(self, part: str) -> Tensor:
        return LABELS


@pytest.mark.parametrize("views", [None, 1, 3])
def test_a_class_is_as_sure_as_zero_shot_is_of_the_images_that_are_trained_on(
    open_clip: Backbone, views: int | None
) -> None:
    model = adapt.wrap(open_clip, methods.CLAP(), NAMES)
    images, random_views = F.normalize(torch.randn(6, 64), dim=-1), F.normalize(torch.randn(6, 3, 64), dim=-1)
    training: Any = Given(model, images, random_views, views)
    model.method.prepare(training)
    seen = images[:, None] if views is None else random_views[:, :views]
    classes = adapt.wrap(open_clip, methods.ZeroShot(), NAMES).class_features().detach()
    sure = (open_clip.logit_scale * seen @ classes.T).softmax(-1)  # (n, views, classes)
    expected = torch.stack([sure[label == LABELS, :, label].mean() for label in range(3)])
    assert scaled(model.method.training_state()["multipliers"], expected) < 1e-5


def test_an_adapter_of_clap_holds_the_prototypes_alone(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.CLAP(), NAMES)
    assert model.method.state_dict().keys() == {"prototypes"}
