"""Images counted by how rare their class is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import Split, load

STEPS = {"iterations": 2, "batch_size": 6, "lr": 0.1, "schedule": "constant", "augment": "none", "progress": False}


def losses_of(model: AdaptedModel, split: Split, **settings: Any) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """Logits, labels and the loss of each step of a training."""
    seen, losses = [], model.losses

    def watched(step: Any, weights: Any = None) -> Any:
        terms, right = losses(step, weights)
        seen.append((step.logits.detach(), step.labels, float(terms["cross_entropy"].detach())))
        return terms, right

    model.losses = watched  # type: ignore[method-assign]
    adapt.fit(model, split.train, cache=False, **STEPS | settings)
    return seen


def test_a_rare_class_counts_as_much_as_a_frequent_one(open_clip: Backbone, tiny_split: Split) -> None:
    first = [item for item in tiny_split.train if item.label == 0]
    rare = [next(item for item in tiny_split.train if item.label == label) for label in (1, 2)]
    uneven = Split("uneven", tiny_split.class_names, (*first, *rare), (), ())
    weights = torch.tensor([1 / len(first), 1.0, 1.0])
    model = adapt.wrap(open_clip, methods.CoOp(n_ctx=2), uneven.class_names)
    for logits, labels, loss in losses_of(model, uneven, class_weights="balanced"):
        each = F.cross_entropy(logits, labels, reduction="none") * weights[labels]
        assert loss == pytest.approx(float(each.sum() / weights[labels].sum()), abs=1e-5)
    for logits, labels, loss in losses_of(model, uneven):  # and the next training is none the wiser
        assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)


def test_data_without_classes_has_no_weights(open_clip: Backbone) -> None:
    pairs = load("emoji-captions").train[:8]
    with pytest.raises(AdaptError, match=r"train\.class_weights are of classes"):
        adapt.fit(adapt.wrap(open_clip, methods.LoRA(), ()), pairs, **STEPS, class_weights="balanced")


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("vl2v_sd", {}),
        ("detpro", {"n_ctx": 2}),
        ("uniqa", {}),
        ("compose", {"methods": [{"name": "coop", "n_ctx": 2}, {"name": "vl2v_sd"}]}),
    ],
)
def test_a_loss_without_the_cross_entropy_has_no_weights(
    open_clip: Backbone, tiny_split: Split, method: str, config: dict[str, Any]
) -> None:
    model = adapt.wrap(open_clip, methods.find(method)(**config), tiny_split.class_names)
    with pytest.raises(AdaptError, match=rf"the loss of {method} has none of them"):
        adapt.fit(model, tiny_split.train, **STEPS, class_weights="balanced")


def test_the_probe_weighs_classes_as_scikit_learn_does(open_clip: Backbone) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 40 + [1] * 8 + [2] * 4)
    features = F.normalize(torch.eye(3, 64)[labels] + 0.4 * torch.randn(len(labels), 64), dim=-1)
    found = {}
    for weights, given in (("balanced", "balanced"), ("equal", None)):
        probe = adapt.wrap(open_clip, methods.LinearProbe(strength=10.0, class_weights=weights), ("a", "b", "c"))
        probe.method.solve((features, labels), None)
        expected = LogisticRegression(C=10.0, class_weight=given, tol=1e-8, max_iter=5000).fit(features, labels)
        torch.testing.assert_close(
            probe.logits(features).softmax(-1).double(),
            torch.from_numpy(expected.predict_proba(features.numpy())).double(),
            atol=1e-3,
            rtol=0,
        )
        found[weights] = probe.method.weight.detach().clone()
    assert (found["balanced"] - found["equal"]).abs().max() > 0.1


def test_the_probe_chooses_by_balanced_accuracy(open_clip: Backbone) -> None:
    probe = adapt.wrap(open_clip, methods.LinearProbe(class_weights="balanced"), ("a", "b")).method
    labels = torch.tensor([0, 0, 0, 1])
    with torch.no_grad():
        probe.bias.copy_(torch.tensor([1.0, 0.0]))  # says a of everything
    assert probe._accuracy(probe, (torch.zeros(4, 64), labels)) == 0.5
