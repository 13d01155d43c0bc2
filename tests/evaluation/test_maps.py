"""Areas under curves of anomaly maps; against the published implementation they are in tests/parity."""

from __future__ import annotations

import itertools

import pytest
import torch

from adapt.evaluation.maps import MapScores, f1_max, region_overlap
from adapt.evaluation.scores import Scores


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    """At the highest score half of one region and all of the other are detected: 3/4 on average.

    All other pixels have the lowest score. If the pixels at a corner were two regions, the first overlap would be 2/3.
    """
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 2, 2] = True
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = maps[1, 2, 2] = 1.0
    assert region_overlap(maps, masks) == pytest.approx(0.75 + 0.25 * 0.3 / 2, abs=1e-6)


def test_the_overlap_is_integrated_up_to_a_share_of_false_pixels() -> None:
    """Of ten normal pixels one is above half of the region, and all others above the rest of it."""
    masks = torch.zeros(1, 3, 4, dtype=torch.bool)
    masks[0, 0, :2] = True
    maps = torch.tensor([[[0.8, 0.1, 0.9, 0.5], [0.4, 0.4, 0.3, 0.3], [0.2, 0.2, 0.2, 0.2]]])
    curve = [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5), (0.2, 0.5), (0.4, 0.5), (0.6, 0.5), (1.0, 0.5), (1.0, 1.0)]
    area = sum((right - left) * (one + other) / 2 for (left, one), (right, other) in itertools.pairwise(curve))
    assert region_overlap(maps, masks, most_false=1.0) == pytest.approx(area)
    assert region_overlap(maps, masks) == pytest.approx(0.5 * 0.2 / 0.3)  # between two thresholds: interpolated
    rising = torch.tensor([[[0.8, 0.1, 0.9, 0.1], [0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]])
    at_end = 0.5 + 0.5 * 0.2 / 0.9  # on the line from (0.1, 0.5) to (1, 1)
    assert region_overlap(rising, masks) == pytest.approx(0.2 * (0.5 + at_end) / 2 / 0.3)


def test_each_area_is_of_its_own_scores() -> None:
    masks = torch.zeros(3, 1, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 0, 1] = True
    maps = torch.tensor([[[0.9, 0.2]], [[0.5, 0.4]], [[0.3, 0.1]]])
    scores = Scores(("a", "b", "c"), ("x", "x", "y"), ("x", "y", "y"), (0.9, 0.8, 0.7))
    anomalous = torch.tensor([True, True, False])
    figures = MapScores.of(scores, anomalous, torch.tensor([0.8, 0.1, 0.3]), maps, masks, "y").figures()
    assert figures["image_auroc"] == pytest.approx(0.5)  # one of two anomalous images is above the normal one
    assert figures["map_auroc"] == 1.0
    assert figures["pixel_auroc"] == pytest.approx((4 + 3) / 8)
    assert figures["pro"] == pytest.approx(region_overlap(maps, masks))
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert (figures["false_alarms"], figures["found"]) == (0.0, 0.5)


def test_without_a_marked_pixel_there_is_no_area() -> None:
    scores = Scores(("a.png",), ("normal",), ("normal",), (0.9,))
    normal, masks = torch.tensor([False]), torch.zeros(1, 4, 4, dtype=torch.bool)
    found = MapScores.of(scores, normal, torch.tensor([0.1]), torch.rand(1, 4, 4), masks, "normal")
    assert found.areas == (("false_alarms", 0.0),)
    assert [*found.lines("1 image")][-1] == "false alarms 0.000; pixels not measured, as no mask marks one"


@pytest.mark.parametrize(("gap", "trusted"), [(0.0, False), (0.05, False), (1.0, True)])
def test_maps_that_do_not_separate_images_come_with_a_caution(gap: float, trusted: bool) -> None:
    """Of 20 images each, two standard deviations of chance are an area of 0.685."""
    anomalous = torch.arange(40) < 20
    maps = torch.rand(40, 4, 4, generator=torch.Generator().manual_seed(0)) + gap * anomalous[:, None, None]
    names = tuple("normal" for _ in anomalous)
    scores = MapScores.of(Scores(names, names, names, (0.9,) * 40), anomalous, anomalous.float(), maps, None, "normal")
    assert scores.figures()["image_auroc"] == 1.0
    assert "pixel_auroc" not in scores.figures()
    maps_auroc = dict(scores.areas)["map_auroc"]
    assert (maps_auroc > 0.685) is trusted
    told = [*scores.lines("40 images")][-1]
    assert ("do not trust the maps: as far as 20 abnormal and 20 normal images can tell" in told) is not trusted


def test_f1_max_is_that_of_the_best_threshold() -> None:
    scores, positive = torch.tensor([0.9, 0.7, 0.7, 0.4, 0.1]), torch.tensor([True, True, False, True, False])
    best = max(
        2 * float((positive & (scores >= t)).sum()) / float((scores >= t).sum() + positive.sum()) for t in scores
    )
    assert f1_max(scores, positive) == pytest.approx(best) == pytest.approx(6 / 7)
    assert f1_max(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([True, False, False])) == pytest.approx(0.5)
    assert f1_max(scores, torch.zeros(5, dtype=torch.bool)) is None
