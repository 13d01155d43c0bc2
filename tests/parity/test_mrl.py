"""Nested classifiers of MRL and MRL-E against the published layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import scaled

import adapt
from adapt import methods
from adapt.methods.base import Encoded, ImageStep, total
from adapt.methods.mrl import MRLAtUse


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


@pytest.mark.parametrize("name", ["mrl", "mrl_e"])
def test_heads_read_features_as_they_come(name: str) -> None:
    """Without rescaling, a model's loss and its answers at each length are those of the published layers."""
    settings, expected = published.case(name)
    backbone = published.backbone("open_clip")
    names, nesting = [f"class {number}" for number in range(settings["classes"])], (*settings["nesting"], 64)
    torch.manual_seed(0)
    method = methods.MRL(nesting=nesting, rescale=False, classifier="shared" if settings["efficient"] else "heads")
    model = adapt.wrap(backbone, method, names)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, labels = F.normalize(torch.randn(6, 64), dim=-1), expected["labels"][:1].repeat(6)
    state = {key: value.double() for key, value in method.state_dict().items()}
    features = F.normalize(x.double() @ state["weight"], dim=-1)
    shared = settings["efficient"]
    right = [
        features[:, :n] @ state[f"nesting_classifier_{0 if shared else i}.weight"][:, :n].T
        + state[f"nesting_classifier_{0 if shared else i}.bias"]
        for i, n in enumerate(nesting)
    ]
    step = ImageStep(model.train(), Encoded(x), labels)
    assert scaled(total(method.loss(step)), sum(F.cross_entropy(each, labels) for each in right)) < published.TOLERANCE
    model.eval()
    for length, logits in zip(nesting, right):
        method.at_use = MRLAtUse(dim=length)
        assert scaled(method.logits(ImageStep(model, Encoded(x))), logits) < published.TOLERANCE
