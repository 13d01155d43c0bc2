"""Objectives of classes against NLPrompt and CLS-RL: losses, gradients, and prompts after two epochs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import published
import pytest
import torch
from published import LIBRARIES
from selection import by_turns
from torch import Tensor

import adapt
from adapt.methods import CoOp
from adapt.methods.base import total
from adapt.methods.base.class_loss import ClassLoss, group_weights
from adapt.tasks.classes import Classes


@by_turns("library", LIBRARIES)
def test_expected_accuracy(library: str) -> None:
    """Each epoch takes cross-entropy steps over the images held to be clean, and then steps over the others."""
    settings, expected = published.case("nlprompt")
    names, batch = settings["names"], settings["batch"]
    method = CoOp(n_ctx=settings["n_ctx"])
    model = adapt.wrap(published.backbone(library), method, names)
    method.load_state_dict({"ctx": expected["ctx"]})
    assert model.backbone.logit_scale == pytest.approx(settings["logit_scale"], rel=1e-5)
    images, labels, losses = expected["images"], expected["labels"], list[Tensor]()

    def stepped(rows: Sequence[int], objective: str) -> tuple[Tensor, Tensor, Tensor]:
        model.class_loss = ClassLoss(objective)
        step = model.step(images[list(rows)], labels[list(rows)])
        step.task = Classes()
        loss = total(step.task_loss())
        [gradient] = torch.autograd.grad(loss, [method.ctx])
        losses.append(loss.detach())  # the published one is 1e-6 less, which has no gradient
        with torch.no_grad():
            method.ctx -= settings["lr"] * gradient
        return step.logits.detach(), losses[-1], gradient

    for epoch in range(settings["epochs"]):
        clean = expected[f"clean.{epoch}"]
        for kind, objective, chosen in (("clean", "cross-entropy", clean), ("noisy", "accuracy", ~clean)):
            for number, rows in enumerate(chosen.nonzero()[:, 0].split(batch)):
                logits, loss, gradient = stepped(rows.tolist(), objective)
                if epoch == number == 0:
                    assert rows.tolist() == expected[f"{kind}.rows"].tolist()
                    expected.scaled(f"{kind}.logits", logits)
                    expected.scaled(f"{kind}.loss", loss)
                    expected.relative(f"{kind}.grad.ctx", gradient)
        expected.relative(f"ctx.{epoch}", method.ctx)
    expected.scaled("steps.loss", torch.stack(losses))


def test_generalised_cross_entropy() -> None:
    _, expected = published.case("nlprompt")
    for q in ("0.3", "0.7", "1.0"):
        logits = expected["gce.logits"].clone().requires_grad_()
        loss = ClassLoss(f"gce({q})")(logits, expected["gce.labels"])
        expected.scaled(f"gce.{q}.loss", loss)
        expected.relative(f"gce.{q}.grad", torch.autograd.grad(loss, logits)[0])


def test_a_group_in_closed_form() -> None:
    """The mean over all outcomes of a group of the published advantages times the gradient of log-probabilities."""
    settings, expected = published.case("grpo")
    size = settings["group_size"]
    rewards = expected["rewards"].view(-1, size)
    expected.scaled("advantages", advantages(rewards).flatten())
    outcomes = torch.tensor(list(product((0.0, 1.0), repeat=size)), dtype=torch.float64)
    for p in (1e-3, 0.1, 0.5, 0.93):
        probabilities = (outcomes * p + (1 - outcomes) * (1 - p)).prod(-1)
        slopes = outcomes / p - (1 - outcomes) / (1 - p)  # of the log-probabilities, by p
        expectation = (probabilities[:, None] * advantages(outcomes) * slopes).mean(-1).sum()
        [weight] = group_weights(torch.tensor([p], dtype=torch.float64), size)
        assert float(weight) == pytest.approx(float(expectation), rel=3e-4)  # which 1e-4 over a spread of 0.5 makes


def advantages(rewards: Tensor) -> Tensor:
    """The published advantages `(n, G)` of groups."""
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)
