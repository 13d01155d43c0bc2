"""Attention over the images of an item, against the published implementation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F

from adapt import methods


@pytest.mark.parametrize("name", ["abmil", "abmil_gated"])
def test_abmil(name: str) -> None:
    """The map before the attention and the logistic output behind it are the test's own; ours are a CLIP's."""
    settings, expected = published.case(name)
    given = {key.removeprefix("param."): expected[key].requires_grad_() for key in expected if key.startswith("param.")}
    assert settings["branches"] == 1
    method = methods.ABMIL(gated=settings["gated"], hidden=settings["attention"])
    backbone: Any = SimpleNamespace(embed_dim=settings["hidden"], device=torch.device("cpu"))
    method.build(backbone, ())
    own = dict(method.named_parameters())
    assert not own[next(key for key in own if key.startswith(("attention.2", "attention_w")))].any()  # begins as a mean
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(given[key])
    first = "feature_extractor_part2.0"
    hidden = F.linear(expected["instances"], given[f"{first}.weight"], given[f"{first}.bias"]).relu()
    expected.scaled("hidden", hidden)
    counts = expected["bag_sizes"]
    expected.scaled("attention", method.weights(hidden, counts)[None])
    pooled = method.pool_bags(hidden, counts)
    expected.scaled("pooled", pooled)
    probabilities = F.linear(pooled, given["classifier.0.weight"], given["classifier.0.bias"]).sigmoid()[:, 0]
    expected.scaled("probabilities", probabilities)
    expected.equal("decisions", (probabilities >= 0.5).float())
    losses = F.binary_cross_entropy(probabilities.clamp(1e-5, 1 - 1e-5), expected["labels"], reduction="none")
    expected.scaled("losses", losses)
    losses.mean().backward()
    for key, parameter in given.items():
        if key in own:
            expected.relative(f"grad.{key}", own[key].grad)
        elif not key.startswith("attention"):
            expected.relative(f"grad.{key}", parameter.grad)
