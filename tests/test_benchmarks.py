"""Operations by formula and by torch's counter, at the papers' sizes; nothing is allocated for them."""

from __future__ import annotations

import pytest

from benchmarks import meter, products, vlora


def test_das_saves_what_its_paper_says_at_meters_shape() -> None:
    assert 100 * meter.saved(2, 2) == pytest.approx(12.0, abs=0.1)
    assert meter.meter() / 2e9 == pytest.approx(93.1, abs=0.05)
    assert meter.adapters() / 2e9 == pytest.approx(1.64, abs=0.005)


@pytest.mark.parametrize("tokens", [(meter.IMAGE, meter.TEXT), (meter.TEXT, meter.IMAGE)])
def test_a_fusion_block_counts_as_the_formula_says(tokens: tuple[int, int]) -> None:
    assert meter.fusion_block(*tokens) == pytest.approx(meter.counted(*tokens), rel=1e-6)


def test_vlora_takes_at_most_seven_hundredths_of_the_projectors_operations() -> None:
    counted = {method: vlora.large(method) for method in ("projector", "vlora")}
    assert counted["vlora"] / counted["projector"] < 0.07
    for method, operations in counted.items():
        assert vlora.by_formula(method) == pytest.approx(operations, rel=0.02)


def test_the_products_of_a_step_are_those_of_its_maps_and_of_gradients_through_frozen_ones() -> None:
    import torch

    frozen = [torch.nn.Linear(8, 32).requires_grad_(False), torch.nn.Linear(32, 8).requires_grad_(False)]
    trained = torch.nn.Linear(8, 8)
    x, rows = torch.randn(5, 8), 5

    def step() -> None:
        frozen[1](frozen[0](trained(x)).relu()).sum().backward()

    forward, inner = 2 * rows * 8 * 8, 2 * 2 * rows * 8 * 32
    counted = products.products_of(step)
    assert counted.flops == forward + inner + inner + forward  # gradients: through the frozen ones, of the trained one
    counted()  # and they can be computed by themselves
