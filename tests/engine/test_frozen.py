"""What a frozen model is, and whose flags come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adapt.backbones.locks import frozen


def make() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout(), nn.Linear(2, 2))
    model[0].grad_checkpointing, model[2].grad_checkpointing = True, False
    return model


def flags(model: nn.Module) -> list[bool]:
    modules = list(model.modules())
    return [
        *(module.training for module in modules),
        *(getattr(module, "grad_checkpointing", False) for module in modules),
        *(parameter.requires_grad for parameter in model.parameters()),
    ]


def test_only_what_the_owner_set_comes_back() -> None:
    model = make().train()
    model[1].eval()
    model[2].bias.requires_grad_(False)
    before = flags(model)
    for _ in range(2):
        with frozen(model):
            assert not any(flags(model))
            with frozen(model):
                pass
            assert not any(flags(model))
        assert flags(model) == before


def test_flags_that_the_owner_changes_between_calls_are_kept() -> None:
    model = make().train()
    with frozen(model):
        pass
    model.eval().requires_grad_(False)
    model[0].grad_checkpointing = False
    with frozen(model):
        pass
    assert not any(flags(model))


def test_models_side_by_side_are_frozen_each_by_itself() -> None:
    both = nn.ModuleDict({"one": make().train(), "two": make().train()})
    before = flags(both["one"])
    first = frozen(both["one"])
    first.__enter__()
    with frozen(both):
        assert not any(flags(both["two"]))
    assert flags(both["two"]) == before
    assert not any(flags(both["one"]))  # a call still holds it
    first.__exit__(None, None, None)
    assert flags(both["one"]) == before


def test_a_model_frozen_has_no_gradient_but_passes_one_on() -> None:
    model, x = make().train(), torch.ones(1, 2, requires_grad=True)
    with frozen(model):
        model(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flags_come_back_when_one_cannot_be_set() -> None:
    class Fixed(nn.Module):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "training" and value is False:
                raise ValueError("stays in training")
            super().__setattr__(name, value)

    model = nn.Sequential(make(), Fixed()).train()
    before = flags(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="stays in training"), frozen(model):
            pass
        assert flags(model) == before
