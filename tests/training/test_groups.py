"""Groups of a method's parameters: each has the recipe's rate times its own factor, and decays or does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from stopping import stopped_at
from torch import nn

from adapt import AdaptError, methods, wrap
from adapt.methods.base import ParameterGroup
from adapt.recipe.settings import TrainSettings
from adapt.training.loop import make_optimizer


class Grouped(methods.BitFit):
    """BitFit of which one tower learns ten times as fast, and its other does not decay."""

    name = "grouped"

    def groups(self) -> Iterable[ParameterGroup]:
        named = list(self.named_parameters())
        return ParameterGroup.alike(
            (parameter, 10.0 if "visual" in name else 1.0, "visual" in name) for name, parameter in named
        )


class Incomplete(methods.BitFit):
    name = "incomplete"

    def groups(self) -> Iterable[ParameterGroup]:
        return [ParameterGroup(tuple(self.parameters())[1:])]


@pytest.fixture
def new(make_model, class_names):
    backbone = make_model().backbone
    return lambda kind=Grouped: wrap(backbone, kind(towers=["text", "vision"]), class_names)


def test_the_optimiser_has_them_with_their_factors(new) -> None:
    model = new()
    settings = TrainSettings(epochs=1, optimizer="adamw", betas=(0.8, 0.98), weight_decay=0.1)
    rows = make_optimizer(model, settings).param_groups
    assert sorted((row["rate"], row["weight_decay"], row["betas"]) for row in rows) == [
        (1.0, 0.0, (0.8, 0.98)),
        (10.0, 0.1, (0.8, 0.98)),
    ]
    listed = {id(parameter) for row in rows for parameter in row["params"]}
    assert listed == set(map(id, model.method.parameters()))


def test_a_step_moves_each_by_its_own_rate(new, train) -> None:
    """SGD without momentum: after one step from the same start, a tensor has moved by rate times gradient."""
    plain, grouped = new(methods.BitFit), new()
    for model in (plain, grouped):
        train(
            model,
            epochs=1,
            batch_size=99,
            drop_last=False,
            schedule="constant",
            lr=0.01,
            momentum=0.0,
            weight_decay=0.0,
        )
    start = new(methods.BitFit).method.state_dict()
    for name, value in start.items():
        once, moved = (model.method.state_dict()[name] - value for model in (plain, grouped))
        torch.testing.assert_close(moved, (10 if "visual" in name else 1) * once, rtol=1e-3, atol=1e-7)


def test_a_resumed_run_keeps_them_apart(new, train, tmp_path: Path) -> None:
    settings = {"epochs": 3, "optimizer": "adamw", "lr": 0.001}
    whole, resumed = new(), new()
    train(whole, out=tmp_path / "whole", **settings)
    with stopped_at(4):
        train(new(), out=tmp_path / "killed", **settings)
    train(resumed, out=tmp_path / "killed", resume=True, **settings)
    expected, state = whole.method.state_dict(), resumed.method.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_groups_that_leave_out_a_parameter_are_refused(new) -> None:
    with pytest.raises(AdaptError, match="groups of incomplete are not of the parameters that it trains"):
        make_optimizer(new(Incomplete), TrainSettings(epochs=1))


def test_the_parts_of_a_composition_keep_theirs(make_model, class_names, monkeypatch) -> None:
    monkeypatch.setattr(methods.BitFit, "groups", Grouped.groups)
    parts = methods.Compose([methods.BitFit(towers=["text", "vision"]), methods.LoRA(rank=2)])
    model = wrap(make_model().backbone, parts, class_names)
    rates = {group.rate for group in model.method.groups()}
    assert rates == {1.0, 10.0}
    assert all(isinstance(each, nn.Parameter) for each in model.method.trains())
    assert len(list(model.method.trains())) == len(list(model.method.parameters()))
