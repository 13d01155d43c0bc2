"""Sets of classes against MAPIE, crepes and the published Conf-OT: scores, limits, transport, sets."""

from __future__ import annotations

import published
import pytest
import torch

from adapt.models import sets as ours
from adapt.models.sets import Score, Sets, scores_of, transported


def test_conformal() -> None:
    """MAPIE's randomised APS is held by its scores alone: its sets leave the chance out on one side."""
    settings, expected = published.case("conformal")
    known, levels = settings["calibration"], settings["levels"]
    probabilities, labels = expected["probabilities"], expected["labels"]
    assert len(probabilities) == known + settings["test"]
    groups = [str(number) for number in range(known)]

    def sets(by_class: bool, score: Score = "lac") -> Sets:
        return Sets.of(probabilities[:known], labels[:known], groups, score, by_class, "")

    own = scores_of(probabilities[:known], "lac").gather(1, labels[:known, None])[:, 0]
    expected.scaled("mapie.lac.scores", own, within=1e-12)
    limits = torch.tensor([sets(False).limits(level) for level in levels], dtype=torch.double)[:, 0]
    expected.scaled("mapie.lac.thresholds", limits, within=1e-12)
    held = torch.stack([sets(False).hold(probabilities[known:], level) for level in levels], -1)
    expected.equal("mapie.lac.sets", held)
    for name, by_class in (("all", False), ("class", True)):
        for kind, score in (("hinge", "lac"), ("margin", "margin")):
            for level in levels:
                held = sets(by_class, score).hold(probabilities[known:], level)
                expected.equal(f"crepes.{kind}.{name}.p", held, lambda p, level=level: p > 1 - level + 1e-9)
    own = scores_of(probabilities[:known], "top_k").gather(1, labels[:known, None])[:, 0]
    expected.equal("mapie.top_k.scores", own)
    limits = torch.tensor([sets(False, "top_k").limits(level) for level in levels])[:, 0]
    expected.equal("mapie.top_k.thresholds", limits)
    held = torch.stack([sets(False, "top_k").hold(probabilities[known:], level) for level in levels], -1)
    expected.equal("mapie.top_k.sets", held)
    of_labels = probabilities[:known].gather(1, labels[:known, None])[:, 0]
    randomised = scores_of(probabilities[:known], "aps").gather(1, labels[:known, None])[:, 0]
    for name in ("aps", "aps_open"):
        expected.scaled(f"mapie.{name}.scores", randomised - expected[f"mapie.{name}.u"] * of_labels, within=1e-12)


def test_conformal_cross() -> None:
    """MAPIE's own rule for LAC is that of CV+ at this number of images; its APS has chance on one side alone."""
    settings, expected = published.case("conformal_cross")
    known, levels = settings["train"], settings["levels"]
    features, labels, fold = expected["features"], expected["labels"], expected["fold"]
    (train, _), y = features.tensor_split([known]), labels[:known]
    assert len(features) == known + settings["test"]
    heads = []
    for number in range(settings["folds"]):
        of_classes = [train[(fold != number) & (y == label)].mean(0) for label in range(3)]
        heads.append((-torch.cdist(features, torch.stack(of_classes)).square()).softmax(-1))
    own, test = torch.stack(heads).tensor_split([known], 1)
    held_out = own[fold, torch.arange(known)]
    of_labels = held_out.gather(1, y[:, None])[:, 0]
    expected.scaled("lac.scores", scores_of(held_out, "lac").gather(1, y[:, None])[:, 0], within=1e-12)
    aps = scores_of(held_out, "aps").gather(1, y[:, None])[:, 0] - expected["aps.u"] * of_labels
    expected.scaled("aps.scores", aps, within=1e-12)
    found = Sets.of(held_out, y, range(known), "lac", False, "", folds=fold.tolist())
    assert found.crossed
    expected.equal("lac.crossval.sets", torch.stack([found.hold(test, level) for level in levels], -1))


@pytest.mark.parametrize("name", ["confot", "confot_skewed"])
def test_transport(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published scores have chance in them; its sets, by LAC, are held with its own threshold."""
    settings, expected = published.case(name)
    known, labels = settings["calibration"], expected["labels"][: settings["calibration"], None]
    assert len(expected["labels"]) == known + settings["test"]
    monkeypatch.setattr(ours, "RAPS", {"penalty": settings["penalty"], "free_ranks": settings["k_reg"]})
    plain = (expected["logits"] / settings["epsilon"]).softmax(-1)
    together = transported(expected["logits"], settings["epsilon"], settings["iterations"]).exp()
    for kind, probabilities in (("none", plain), ("uniform", together)):
        expected.scaled(kind, probabilities)
        of_labels = probabilities[:known].gather(1, labels)[:, 0]
        for score in ("lac", "aps", "raps"):
            own = scores_of(probabilities[:known], score).gather(1, labels)[:, 0]
            chance = 0 if score == "lac" else (1 - expected[f"{kind}.{score}.u"]) * of_labels
            expected.scaled(f"{kind}.{score}.scores", own - chance)
        held = scores_of(probabilities[known:], "lac") < expected[f"{kind}.lac.threshold"]
        expected.equal(f"{kind}.lac.sets", held)


def test_transport_of_large_logits_is_finite_and_every_class_gets_its_share() -> None:
    """In fp32 without logarithms, exp overflows from 88 on."""
    logits = 1000 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    found = transported(logits).exp()
    assert found.isfinite().all()
    assert (found.sum(1) - 1).abs().max() < 1e-12
    shares = transported(logits / 1000, rounds=200).exp().sum(0)
    assert (shares - 50 / 7).abs().max() < 1e-6
