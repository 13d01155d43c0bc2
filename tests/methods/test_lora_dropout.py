"""LoRA's dropout is torch's in distribution, and its gradient is of the same mask."""

from __future__ import annotations

import pytest
import torch

from adapt.methods.lora import Dropout, kept


@pytest.mark.parametrize("p", [0.25, 0.1, 0.5, 1 / 3])
def test_each_entry_is_dropped_with_its_chance(p: float) -> None:
    mask = kept(torch.Size((1000, 1000)), p)
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(float(mask.float().mean()) - (1 - p)) < 5 * deviation
    for lag in (1, 2, 4, 8):  # neighbours come out of one random number
        both = mask.flatten()[lag:] & mask.flatten()[:-lag]
        expected = (1 - p) ** 2
        assert abs(float(both.float().mean()) - expected) < 5 * (expected * (1 - expected) / mask.numel()) ** 0.5


def test_values_and_gradient_are_masked_and_scaled_alike() -> None:
    x = torch.randn(64, 33, requires_grad=True)
    out = Dropout(0.25)(x)
    dropped = out == 0
    assert 0.1 < float(dropped.float().mean()) < 0.4
    assert torch.allclose(out[~dropped], x[~dropped] / 0.75)
    out.sum().backward()
    assert torch.allclose(x.grad, (~dropped) / 0.75)


def test_a_seed_repeats_it_and_evaluation_leaves_it_out() -> None:
    layer, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)
