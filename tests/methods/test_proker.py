"""ProKeR's regression: its limits, scikit-learn's kernel ridge regression, and one decomposition for all strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone
from adapt.methods import ProKeR, ZeroShot
from adapt.methods.base import Choice

NAMES = ("goldfish", "red_panda", "sea cucumber")


class Given:
    """A training on unit-length features `(n, v, e)` of v views of each image, held back from nothing."""

    def __init__(self, model: AdaptedModel, views: Tensor, labels: Tensor) -> None:
        self.model = self.classifier = model
        self._views, self._labels = views, labels

    def prepare(self) -> None:
        self.model.method.prepare(self)

    def features(self, part: str, *, views: int = 0) -> Tensor:
        return self._views if views and part == "train" else self._views[:, 0]

    def labels(self, part: str) -> Tensor:
        return self._labels


def fitted(backbone: Backbone, images: int = 9, **settings: Any) -> Given:
    """The training of a fitted ProKeR on random features in as many views as it reads."""
    torch.manual_seed(0)
    model = adapt.wrap(backbone, ProKeR(**{"views": 0} | settings), NAMES).eval()
    views = F.normalize(torch.randn(images, max(1, model.method.config.views), backbone.embed_dim), dim=-1)
    training = Given(model, views, torch.arange(images) % len(NAMES))
    training.prepare()
    return training


def cosines(training: Given, features: Tensor) -> Tensor:
    return features.double() @ training.model.class_features().detach().double().T


def remainders(training: Given) -> Tensor:
    """What zero-shot leaves of the labels, in fp64."""
    labels = training.labels("train").repeat_interleave(training._views.shape[1])
    return F.one_hot(labels, len(NAMES)).double() - cosines(training, training._views.flatten(0, 1))


def others(backbone: Backbone) -> Tensor:
    return F.normalize(torch.randn(7, backbone.embed_dim), dim=-1)


def test_it_is_kernel_ridge_regression_of_all_views_times_the_strength(open_clip: Backbone) -> None:
    from sklearn.kernel_ridge import KernelRidge

    training = fitted(open_clip, views=2, beta=3.0, strength=0.3)
    rows, features = training._views.flatten(0, 1).double(), others(open_clip)
    near, inside = ((3 * (each.double() @ rows.T - 1)).exp() for each in (features, rows))
    ridge = KernelRidge(alpha=0.3, kernel="precomputed").fit(inside.numpy(), remainders(training).numpy())
    correction = 0.3 * torch.from_numpy(ridge.predict(near.numpy()))
    expected = open_clip.logit_scale * (cosines(training, features) + correction)
    assert scaled(training.model.logits(features), expected) < 1e-5


def test_a_kernel_of_ones_corrects_all_images_alike(open_clip: Backbone) -> None:
    training, features = fitted(open_clip, beta=0.0, strength=0.5), others(open_clip)
    correction = remainders(training).sum(0) / (9 / 0.5 + 1)
    expected = open_clip.logit_scale * (cosines(training, features) + correction)
    assert scaled(training.model.logits(features), expected) < 1e-5


def test_one_row(open_clip: Backbone) -> None:
    training = fitted(open_clip, images=1, beta=2.0, strength=0.25)
    assert scaled(training.model.method.alpha, remainders(training) / (1 / 0.25 + 1)) < 1e-6


def test_without_strength_it_is_zero_shot(open_clip: Backbone) -> None:
    training, features = fitted(open_clip, beta=2.0, strength=1e-9), others(open_clip)
    zero_shot = adapt.wrap(open_clip, ZeroShot(), NAMES).logits(features)
    assert scaled(training.model.logits(features), zero_shot) < 1e-5
    assert scaled(fitted(open_clip, beta=2.0, strength=0.1).model.logits(features), zero_shot) > 0.01


def test_equal_views_of_an_image_are_no_trouble(open_clip: Backbone) -> None:
    """Their kernel matrix is singular, and the identity beside it is not."""
    training = fitted(open_clip, beta=2.0, strength=0.1)
    training._views = training._views.expand(-1, 4, -1)
    training.model.method.config = training.model.method.config.model_copy(update={"views": 4})
    training.model.method.prepare(training)
    kernel = (2 * (training._views[:, 0] @ training._views[:, 0].T - 1)).exp().double()
    once = torch.linalg.solve(4 * kernel / 0.1 + torch.eye(9), remainders(training)[::4])
    assert scaled(training.model.method.alpha, once.repeat_interleave(4, 0)) < 1e-5


@pytest.mark.parametrize("fixed", [{}, {"beta": 3.0}, {"strength": 0.3}])
def test_the_search_has_the_logits_of_each_fit(open_clip: Backbone, fixed: dict[str, float]) -> None:
    """One decomposition for each beta serves all strengths."""
    training = fitted(open_clip)
    method = training.model.method
    method.config = method.config.model_copy(update=fixed)
    choices = {
        name: Choice(values, usual=1.0)
        for name, values in {"beta": (0.5, 4.0), "strength": (0.02, 0.2, 2.0)}.items()
        if name not in fixed
    }
    found = list(method.trials(training, choices))
    assert len(found) == {"": 6, "beta": 3, "strength": 2}["".join(fixed)]
    for settings, logits in found:
        exact = fitted(open_clip, **settings).model.logits(training.features("val"))
        assert scaled(logits, exact) < 1e-5


def test_what_is_left_to_the_search() -> None:
    grid: Any = ProKeR().grid(None)  # type: ignore[arg-type]  # which looks at no image
    assert grid["beta"][:3] == ((0.5, 1, 2, 4, 8, 16), 2, True)
    assert grid["strength"].values == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56])
    assert ProKeR(beta=1.0).grid(None).keys() == {"strength"}  # type: ignore[arg-type]
    assert ProKeR(beta=1.0, strength=0.1).grid(None) == {}  # type: ignore[arg-type]


def test_an_adapter_holds_all_rows(open_clip: Backbone, tmp_path: Path) -> None:
    training, features = fitted(open_clip, views=2, beta=2.0, strength=0.1), others(open_clip)
    assert training.model.method.x.shape == (18, open_clip.embed_dim)
    loaded = adapt.load(training.model.save(tmp_path / "adapter.safetensors"), open_clip)
    assert torch.equal(loaded.logits(features), training.model.logits(features))
