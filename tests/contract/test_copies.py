"""Copies and pickles of a model are whole, and a model computes with the tensors that it has now."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tiny_fusion
import tiny_llms
import torch
from cases import ALL, CLIPS, OWN_WEIGHTS, TRAINED_BY_STEPS, build, pairs
from checks import assert_untouched, gradient, loss_of, perturb, relative, scaled, snapshot
from selection import by_turns
from torch import Tensor, nn

import adapt
from adapt import Backbone

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


def ruin(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.3)


@pairs(ALL, CLIPS)
@by_turns("kind", COPIES)
def test_a_copy_stands_by_itself(method: str, backbone: Backbone, kind: str, images: Tensor, labels: Tensor) -> None:
    model = build(method, backbone).eval()
    logits = model(images).detach()
    trained = gradient(model, images, labels) if method in TRAINED_BY_STEPS else None
    copied = COPIES[kind](model)
    before = snapshot(copied.backbone.model)
    ruin(model.backbone.model)
    ruin(model.method)
    assert scaled(copied(images), logits) < 1e-6
    if trained is not None:
        assert relative(gradient(copied, images, labels), trained) < 1e-5
        loss_of(copied, images, labels).backward()
        assert all(parameter.grad is None for parameter in model.method.parameters())
    assert_untouched(copied.unwrap().model, before)


@pairs(ALL, CLIPS)
def test_a_copy_moves_to_double_precision(method: str, backbone: Backbone, images: Tensor) -> None:
    model = build(method, backbone).eval()
    expected = model(images)
    moved = copy.deepcopy(model).to(torch.float64)
    logits = moved(images.double())
    assert logits.dtype == torch.float64
    assert scaled(logits, expected.double()) < 1e-5
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_models_that_answer_questions(kind: str) -> None:
    images, questions = torch.randn(2, 3, 32, 32), ["what is it ?", "how many ?"]
    das, vlora = adapt.methods.DAS(skip=0, towers=("fusion",)), adapt.methods.VLoRA(dim=16, depth=1, rank=2, heads=2)
    answering = adapt.wrap(tiny_fusion.vilt(), das, ("yes", "no"))
    for model in (answering, adapt.wrap(tiny_llms.vision_llm("llama"), vlora)):
        perturb(model)
        expected = model.eval()(images, questions)
        copied = COPIES[kind](model)
        ruin(model.backbone.model)
        assert scaled(copied(images, questions), expected) < 1e-6


@pairs([name for name in TRAINED_BY_STEPS if name not in OWN_WEIGHTS], CLIPS)
def test_tensors_that_take_the_place_of_parameters_count(method: str, backbone: Backbone, images: Tensor) -> None:
    """By `load_state_dict(assign=True)`, and for one call by `torch.func.functional_call`."""
    model = build(method, backbone).eval()
    before = model(images).detach()
    parameters = dict(model.method.named_parameters())
    state = {
        name: (1.5 * value + 0.1).detach() if name in parameters else value
        for name, value in model.method.state_dict().items()
    }
    other = {f"method.{name}": value.clone().requires_grad_() for name, value in state.items() if name in parameters}
    called = torch.func.functional_call(model, other, (images,))
    gradients = torch.autograd.grad(called.square().sum(), list(other.values()))
    assert all(each.norm() > 0 for each in gradients)
    assert scaled(model(images), before) < 1e-6
    model.method.load_state_dict(state, assign=True)
    assert scaled(model(images), called) < 1e-6
    assert scaled(called, before) > 1e-3
    assert gradient(model, images, torch.zeros(6, dtype=torch.long)).norm() > 0
