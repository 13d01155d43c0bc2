"""Nested classifiers of MRL and MRL-E against the published layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F

from adapt import methods


@pytest.mark.parametrize("name", ["mrl", "mrl_e"])
def test_mrl(name: str) -> None:
    """The logits at each length, their summed loss with label smoothing, and all gradients."""
    settings, expected = published.case(name)
    nesting, x = settings["nesting"], expected["x"].clone().requires_grad_()
    method = methods.MRL(nesting=nesting, classifier="shared" if settings["efficient"] else "heads")
    backbone: Any = SimpleNamespace(embed_dim=nesting[-1], device=torch.device("cpu"))
    method.build(backbone, [f"class {number}" for number in range(settings["classes"])])
    given = expected.under("param.")
    method.load_state_dict(given | {"weight": method.weight})
    logits = torch.stack([method.classify(x[:, :length]) for length in nesting])
    expected.scaled("logits", logits)
    smoothing = settings["label_smoothing"]
    loss = sum(F.cross_entropy(each, expected["labels"], label_smoothing=smoothing) for each in logits)
    expected.scaled("loss", loss)
    loss.backward()
    expected.relative("grad.x", x.grad)
    for key in given:
        expected.relative(f"grad.{key}", method.get_parameter(key).grad)
