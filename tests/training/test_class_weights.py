"""Images counted by how rare their class is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

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
    first = [item for item in tiny_split.train if item.answer == tiny_split.class_names[0]]
    rare = [next(item for item in tiny_split.train if item.answer == name) for name in tiny_split.class_names[1:]]
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
    with pytest.raises(AdaptError, match=r"train\.class_weights needs classes"):
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
    with pytest.raises(AdaptError, match=rf"the loss of {method} has no such term"):
        adapt.fit(model, tiny_split.train, **STEPS, class_weights="balanced")


@pytest.mark.parametrize("weights", ["equal", "balanced"])
def test_the_probe_chooses_by_what_its_weights_say(open_clip: Backbone, tiny_split: Split, weights: Any) -> None:
    """One setting answers the frequent class always, the other the rare ones: the first tells more images right."""
    first = [item for item in tiny_split.train if item.answer == tiny_split.class_names[0]]
    rare = [next(item for item in tiny_split.val if item.answer == name) for name in tiny_split.class_names[1:]]
    model = adapt.wrap(open_clip, methods.LinearProbe(class_weights=weights), tiny_split.class_names)
    answers = {0.001: [0] * (len(first) + 2), 1000.0: [1] * len(first) + [1, 2]}

    def fixed(training: Any, choices: Any, learned: bool = False) -> Any:
        for strength, labels in answers.items():
            yield {"strength": strength}, F.one_hot(torch.tensor(labels), 3).float()

    model.method.trials = fixed
    chosen = adapt.fit(model, tiny_split.train, val_set=[*first, *rare], progress=False).metrics["chosen"]
    assert len(first) > 2
    assert chosen["settings"] == {"strength": 0.001 if weights == "equal" else 1000.0}
    share = len(first) / (len(first) + 2)
    assert chosen["accuracy"] == pytest.approx(share if weights == "equal" else 2 / 3)
