"""The contract suite that other people's methods can run: all of ours hold it, and faults are named."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import tiny_natives
import torch
from equal_runs import CASES
from selection import by_turns

import adapt
from adapt import methods
from adapt.backbones.native_eyes import NativeEyes
from adapt.methods.base import ImageStep
from adapt.testing import CHECKS, check_method


@pytest.fixture(scope="module")
def backbones() -> dict[str, adapt.Backbone]:
    names = {"dual encoder": "mini-clip", "fusion encoder": "mini-vilt", "vision LLM": "mini-clip+mini-lm"}
    bundled = {family: adapt.load_backbone(name) for family, name in names.items()}
    both = adapt.load_backbone("mini-clip&vision:mini-clip-half", "cpu")
    heads = NativeEyes(tiny_natives.backbone("smolvlm"), "heads")
    return {**bundled, "embedding": tiny_natives.dual_encoder(), "joined": both, "heads": heads}


# the loss of promptkd needs its teacher, which training gives
@by_turns(("name", "kind"), [case for case in CASES if case[0] != "promptkd"], take=2, one_in=12)
def test_every_method_holds_the_contract(name: str, kind: str, backbones: dict[str, adapt.Backbone]) -> None:
    assert check_method(methods.find(name), backbones[kind]) == [check.__name__ for check in CHECKS]


class Writes(methods.CoOp):
    name = "writes"

    def loss(self, step: ImageStep) -> Any:
        with torch.no_grad():
            next(step.model.backbone.model.parameters()).add_(1e-3)
        return super().loss(step)


class Draws(methods.CoOp):
    name = "draws"

    def logits(self, step: ImageStep) -> torch.Tensor:
        logits = super().logits(step)
        return logits + torch.randn_like(logits)


class Forgets(methods.CoOp):
    """What it learned at the end is kept in an attribute, which no adapter holds."""

    name = "forgets"
    shift = 0.0

    def finish(self, training: Any) -> None:
        self.shift = torch.arange(3.0)

    def logits(self, step: ImageStep) -> torch.Tensor:
        logits = super().logits(step)
        return logits + self.shift if logits.shape[-1] == 3 else logits


class Holds(methods.CoOp):
    name = "holds"

    def build(self, backbone: Any, class_names: Any) -> None:
        super().build(backbone, class_names)
        self.borrowed = backbone.tower("text").blocks[0].norm1


class Remembers(methods.CoOp):
    """Answers lean on the batch that they are asked in."""

    name = "remembers"

    def infer(self, step: ImageStep) -> torch.Tensor:
        logits = super().infer(step)
        return logits - logits.mean(0)


class Dead(methods.CoOp):
    name = "dead"

    def build(self, backbone: Any, class_names: Any) -> None:
        super().build(backbone, class_names)
        self.spare = torch.nn.Parameter(torch.zeros(2))


class Learns(methods.CoOp):
    """It learns from what it is asked."""

    name = "learns"

    def infer(self, step: ImageStep) -> torch.Tensor:
        with torch.no_grad():
            self.ctx += 1e-7
        return super().infer(step)


class Raises(methods.CoOp):
    name = "raises"

    def loss(self, step: ImageStep) -> Any:
        raise KeyError("something")


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (Dead, "every parameter learns: no step changed spare"),
        (Learns, "deciding changes nothing: answering changed ctx"),
        (Raises, "the backbone stays as it is: KeyError: 'something'"),
        (Writes, "the backbone stays as it is: training changed"),
        (Draws, "both paths agree|a loaded adapter answers alike|a stopped training|answers do not depend"),
        (Forgets, "a loaded adapter answers alike: the confidence of a loaded adapter differs by"),
        (Holds, r"only its own tensors train: borrowed\.\w+ is a parameter of the backbone"),
        (Remembers, "answers do not depend on the batch: the confidence of an image by itself differs by"),
    ],
)
def test_what_does_not_hold_is_named(
    method: type[methods.Method], check: str, backbones: dict[str, adapt.Backbone]
) -> None:
    with pytest.raises(AssertionError, match=rf"^{method.name}, ({check})"):
        check_method(method, adapt.load_backbone("mini-clip") if method is Writes else backbones["dual encoder"])
    assert method.name not in methods.names()


class Watching(methods.CoOp):
    name = "watching"
    seen: ClassVar[set[str]] = set()

    def loss(self, step: ImageStep) -> Any:
        self.seen.update(name for item in step.items for name in item.class_names)
        return super().loss(step)


@pytest.mark.full
def test_data_of_ones_own_is_taken(backbones: dict[str, adapt.Backbone]) -> None:
    own = adapt.data.load("emoji").few_shot(2, seed=1).only("3/40")
    own = dataclasses.replace(own, test=own.test[:6])
    check_method(Watching, backbones["dual encoder"], own, n_ctx=2)
    assert Watching.seen == set(own.class_names)
