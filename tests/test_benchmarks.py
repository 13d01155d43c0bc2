"""Operations by formula and by torch's counter, at the papers' sizes; nothing is allocated for them."""

from __future__ import annotations

import pytest

from benchmarks import meter, vlora


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
