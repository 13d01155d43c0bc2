"""What class features were computed from: edits are compared to the bit, the backbone by version, memory and sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt import Backbone
from adapt.backbones.split_attention import StandIn, ViewedWeight
from adapt.edits import Bypass, Tokens
from adapt.models.class_texts import Values, Weights, _middle

LINEAR = nn.Linear(2, 2)


class OtherBypass(Bypass):
    """The same fields under another name."""


def halve(tensor: Tensor) -> None:
    tensor.data.mul_(0.5)  # which no version counts


EQUAL: list[Callable[[], Any]] = [  # each makes new objects
    lambda: torch.arange(3.0),
    lambda: [torch.ones(2), {"a": torch.zeros(2)}],
    lambda: [int("123456789"), float("0.5"), "-".join("ab"), bytes([200, 7]), frozenset([1234]), None, True],
    lambda: [torch.Size([3, 4]), torch.device("cpu"), torch.float16],
    lambda: partial(halve, torch.ones(1), at=int("1000")),
    lambda: [Bypass(0, LINEAR), Tokens(torch.ones(1, 2), block=1)],
]
DIFFERENT: list[tuple[Any, Any]] = [
    (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    (torch.ones(2), torch.ones(1, 2)),
    (torch.ones(2), torch.ones(2).double()),
    (torch.ones(2), torch.ones(2, device="meta")),
    (torch.ones(1), 1.0),
    (1, 1.0),
    (1, 2),
    ({"a": 1}, {"b": 1}),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": 1, "b": 2}, {"a": 1}),
    ([[1], 2], [[1, 2]]),
    (partial(halve, 1), partial(halve, 2)),
    (partial(halve, at=1), partial(halve, at=2)),
    (partial(halve), partial(torch.neg)),
    (Bypass(0, LINEAR), OtherBypass(0, LINEAR)),
    (Tokens(torch.ones(1, 2)), Tokens(torch.zeros(1, 2))),
    ({1}, {1}),  # a set is not looked into
    (object(), object()),
]


@pytest.mark.parametrize("make", EQUAL)
def test_equal_values_are_the_same(make: Callable[[], Any]) -> None:
    assert Values(make()).same(make())


@pytest.mark.parametrize(("before", "after"), DIFFERENT, ids=lambda value: type(value).__name__)
def test_other_values_are_not(before: Any, after: Any) -> None:
    assert Values(before).same(before)
    assert not Values(before).same(after)


@pytest.mark.parametrize("change", [lambda x: halve(x.weight), lambda x: x.eval(), lambda x: setattr(x, "times", 2)])
def test_a_module_that_changes_is_another(change: Callable[[nn.Module], Any]) -> None:
    module = nn.Linear(2, 2)
    inputs = Values([module])
    assert inputs.same([module])
    change(module)
    assert not inputs.same([module])


def test_a_stand_in_is_compared_by_its_kind_only(open_clip: Backbone) -> None:
    projection = open_clip.tower("text").blocks[0].projections["fc1"]
    inputs = Values(ViewedWeight(projection))
    halve(projection.weight)  # which is watched with the backbone
    assert inputs.same(ViewedWeight(projection))
    assert not inputs.same(StandIn(projection))


class Model(nn.Module):
    """A model with all that one may have: a scale, a buffer, an empty tensor, and one without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 5), nn.Parameter(torch.tensor(2.0))
        self.register_buffer("shift", torch.ones(4))
        self.register_buffer("empty", torch.ones(0, 3))
        self.register_buffer("nowhere", torch.ones(2, device="meta"))


@torch.no_grad()
def _add_to_a_corner(model: Model) -> None:
    model.linear.weight[0, 0] += 1


def _move(model: Model) -> None:
    model.linear.weight.data = model.linear.weight.data.clone()


CHANGES: dict[str, Callable[[Model], Any]] = {
    "the values of a weight": lambda model: halve(model.linear.weight),
    "the values of a buffer": lambda model: halve(model.shift),
    "a scale": lambda model: halve(model.scale),
    "a value that is not sampled": _add_to_a_corner,
    "memory": _move,
    "a parameter that equals the old one": lambda model: setattr(
        model.linear, "weight", nn.Parameter(model.linear.weight.detach())
    ),
    "a module that equals the old one": lambda model: model.linear.__setattr__("inner", nn.Identity()),
    "a parameter less": lambda model: model.linear.register_parameter("bias", None),
    "a buffer less": lambda model: model.__delattr__("shift"),
    "a tensor without memory": lambda model: setattr(model, "nowhere", torch.ones(2, device="meta")),
}


INFERENCE = [change for change in CHANGES if change != "a value that is not sampled"]  # tensors without a version


@pytest.mark.parametrize(
    ("change", "inference"), [*((each, False) for each in CHANGES), *((each, True) for each in INFERENCE)]
)
def test_a_changed_model_is_noticed(change: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        model = Model()
        weights = Weights(model)
        assert weights.same()
        CHANGES[change](model)
        assert not weights.same()


def test_the_sample_is_the_middle_of_each_axis() -> None:
    values = torch.arange(4 * 5 * 7).reshape(4, 5, 7)
    assert _middle(values).tolist() == [int(values[2, 2, 3])]
    assert _middle(torch.tensor(6)).tolist() == [6]
