"""Another forward for a module, for a while."""

from __future__ import annotations

import pytest
import torch
from checks import Fault, failing
from torch import nn

from adapt.engine.hooks import forward_as


def test_forwards_nest_and_all_are_gone_afterwards() -> None:
    module, x = nn.Identity(), torch.ones(1)
    with forward_as(module, lambda x: 2 * x):
        outer = module.forward
        with forward_as(module, lambda x: 3 * x):
            assert module(x) == 3
        with failing(module), pytest.raises(Fault), forward_as(module, lambda x: 3 * x):
            module(x)
        assert module.forward is outer
        assert module(x) == 2
    assert module(x) == 1
    assert "forward" not in vars(module)
