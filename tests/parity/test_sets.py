"""Sets of classes against MAPIE and crepes: scores, limits, sets over all images and by class."""

from __future__ import annotations

import published
import torch

from adapt.models.sets import Sets, strangeness


def test_conformal() -> None:
    """MAPIE's randomised APS is held by its scores alone: its sets leave the chance out on one side."""
    settings, expected = published.case("conformal")
    known, levels = settings["calibration"], settings["levels"]
    probabilities, labels = expected["probabilities"], expected["labels"]
    assert len(probabilities) == known + settings["test"]
    groups = [str(number) for number in range(known)]

    def sets(by_class: bool) -> Sets:
        return Sets.of(probabilities[:known], labels[:known], groups, "lac", by_class, "")

    own = strangeness(probabilities[:known], "lac").gather(1, labels[:known, None])[:, 0]
    expected.scaled("mapie.lac.scores", own, within=1e-12)
    limits = torch.tensor([sets(False).limits(level) for level in levels], dtype=torch.double)[:, 0]
    expected.scaled("mapie.lac.thresholds", limits, within=1e-12)
    held = torch.stack([sets(False).hold(probabilities[known:], level) for level in levels], -1)
    expected.equal("mapie.lac.sets", held)
    for name, by_class in (("all", False), ("class", True)):
        for level in levels:
            held = sets(by_class).hold(probabilities[known:], level)
            expected.equal(f"crepes.hinge.{name}.p", held, lambda p, level=level: p > 1 - level + 1e-9)
    of_labels = probabilities[:known].gather(1, labels[:known, None])[:, 0]
    randomised = strangeness(probabilities[:known], "aps").gather(1, labels[:known, None])[:, 0]
    for name in ("aps", "aps_open"):
        expected.scaled(f"mapie.{name}.scores", randomised - expected[f"mapie.{name}.u"] * of_labels, within=1e-12)
