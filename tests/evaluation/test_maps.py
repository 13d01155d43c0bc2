"""Areas under curves of anomaly maps; against the published implementation they are in tests/parity."""

from __future__ import annotations

import pytest
import torch

from adapt.evaluation.maps import region_overlap


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    """At the highest score half of one region and all of the other are detected: 3/4 on average.

    All other pixels have the lowest score. If the pixels at a corner were two regions, the first overlap would be 2/3.
    """
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 2, 2] = True
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = maps[1, 2, 2] = 1.0
    assert region_overlap(maps, masks) == pytest.approx(0.75 + 0.25 * 0.3 / 2, abs=1e-6)
