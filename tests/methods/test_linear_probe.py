"""The linear probe on few wide features, and on data that divides nothing."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

import adapt
from adapt import AdaptError
from adapt.data import Split
from adapt.methods.linear_probe import LinearProbe


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_images_than_numbers_are_solved_in_the_space_that_they_span(classes: int) -> None:
    """And the coefficients are scikit-learn's on the features themselves, also where two images are one."""
    draw = torch.Generator().manual_seed(classes)
    features = torch.nn.functional.normalize(torch.randn(30, 400, generator=draw, dtype=torch.double), dim=-1)
    features[7] = features[8]
    labels = torch.arange(30) % classes
    weight, bias = LinearProbe(strength=10.0).solve(features, labels)
    expected = LogisticRegression(C=10.0, tol=1e-10, max_iter=20_000).fit(features.numpy(), labels.numpy())
    if classes == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    assert weight.numpy() == pytest.approx(expected.coef_, abs=1e-7)
    assert bias.numpy() == pytest.approx(expected.intercept_, abs=1e-7)


def test_images_of_one_class_are_refused(open_clip: adapt.Backbone, tiny_split: Split) -> None:
    alone = [item for item in tiny_split.train if item.class_names == tiny_split.class_names[:1]]
    model = adapt.wrap(open_clip, adapt.methods.LinearProbe(), tiny_split.class_names[:1])
    with pytest.raises(AdaptError, match="linear_probe divides classes, but all training images are of one class"):
        adapt.fit(model, alone, progress=False)
