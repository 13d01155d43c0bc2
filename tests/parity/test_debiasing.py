"""Debiased scores of tokens, and calibrated probabilities, against LLaVA-Align."""

from __future__ import annotations

import published
import torch
from sklearn.metrics import f1_score

from adapt.models.debiasing import Debiasing, calibrated, debiased

OTHERS = {"none": ("none",), "unk": ("unk",), "both": ("none", "unk"), "cd": ("noise",)}


def test_vdd() -> None:
    """Scores of the next token in each mode, with minus infinity where a token is left out."""
    settings, expected = published.case("vdd")
    alpha, beta = settings["cd_alpha"], settings["cd_beta"]
    seen = expected["logits.image"][0]
    for mode, names in OTHERS.items():
        others = [expected[f"logits.{name}"][0] for name in names]
        scores = debiased(seen, torch.stack(others).mean(0), alpha, beta)
        theirs = expected[f"scores.{mode}"]
        left_out = theirs.isinf()
        assert torch.equal(scores.isinf(), left_out)
        assert 0 < left_out.sum() < left_out.numel()
        expected.scaled(f"scores.{mode}", scores.masked_fill(left_out, 0), lambda x: x.masked_fill(x.isinf(), 0))
        rows = torch.cat([seen, *others])
        found = Debiasing(len(rows), alpha, beta)(torch.zeros(len(rows), 1), rows)
        assert torch.equal(found, scores.log_softmax(-1).expand(len(rows), -1))
    expected.scaled("scores.plain", seen)


def accuracy(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (probabilities.argmax(-1) == labels).float().mean()


def test_calibrate() -> None:
    _, expected = published.case("calibrate")
    logits = expected["probs"].log()
    # this function divides by what all questions share, to which it does not add 1e-4
    found = calibrated(logits, expected["p_cf"][None] - 1e-4).softmax(-1)
    expected.scaled("calibrated.diagonal_W", found, within=1e-12)
    expected.scaled("calibrated.none", logits.softmax(-1), within=1e-12)
    expected.scaled("accuracy.diagonal_W", accuracy(found, expected["labels"]))
    expected.scaled("accuracy.none", accuracy(logits, expected["labels"]))


def test_pope() -> None:
    """The published script on its answer files: yes and no, calibrated by the question without an image."""
    _, expected = published.case("pope")
    labels, logits = expected["labels"], expected["naive"].log()
    parts = {name: expected[name] / expected[name].sum(-1, keepdim=True) for name in ("none", "unk")}
    both = expected["none"] + expected["unk"]
    without = parts | {"none_unk": both / both.sum(-1, keepdim=True)}
    found = {name: calibrated(logits, each) for name, each in without.items()} | {"naive": logits}
    expected.scaled("calibrated", found["none_unk"].softmax(-1), within=1e-12)
    for name, each in found.items():
        expected.scaled(f"accuracy.{name}", 100 * accuracy(each, labels), within=1e-3)
        expected.scaled(f"f1.{name}", 100 * f1(each, labels), within=1e-3)


def f1(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The F1 score of yes, which comes first."""
    return torch.tensor(f1_score(labels, probabilities.argmax(-1), pos_label=0))
