"""Sets of images answered together, against the published implementations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import published
import pytest
from torch import Tensor

from adapt import methods
from adapt.methods.base.transduction import Round


def a_set(expected: Any) -> Any:
    """The images of a case as one set, whose cosines have the scale that is written out in both published codes."""
    features, texts = expected["image_features"], expected["class_features"]
    return SimpleNamespace(features=features, class_features=texts, logits=100 * features @ texts.T)


def right(answers: Tensor, labels: Tensor) -> Any:
    return pytest.approx(float((answers.argmax(-1) == labels).float().mean()))


def compare_rounds(settings: Any, expected: Any, rounds: list[Round], step: Any) -> None:
    assert len(rounds) == settings["max_iter"] + 1
    expected.scaled("z.0", rounds[0].answers.exp())
    expected.scaled("z.1", rounds[1].answers.exp())
    for exact in ("", ".f64"):
        expected.scaled(f"z{exact}", rounds[-1].answers.exp(), of=lambda stored: stored.float())
    for key, number in (("mu.0", 0), ("mu", -1)):
        expected.scaled(key, rounds[number].classes.mean)
    labels = expected["labels"]
    accuracies = {"zero_shot": right(step.logits, labels), "z": right(rounds[-1].answers, labels)}
    settings.equal("accuracy", accuracies)


@pytest.mark.parametrize("name", ["stata", "stata_soft"])
def test_stata(name: str) -> None:
    settings, expected = published.case(name)
    assert settings["lambda_y_hat"] == 1  # the weight of the classifier's own answers, which is no setting of ours
    method = methods.StatA(alpha=settings["alpha"], soft_counts=settings["soft_beta"], rounds=settings["max_iter"],
                           neighbours=settings["n_neighbors"],
                           neighbour_weight=settings["lambda_laplacian"])  # fmt: skip
    step = a_set(expected)
    expected.scaled("zero_shot", step.logits.softmax(-1))
    rounds = [*method.rounds(step)]
    compare_rounds(settings, expected, rounds, step)
    for suffix, number in ((".0", 0), ("", -1)):
        expected.scaled(f"cov{suffix}", rounds[number].classes.variance)
    before_the_last = rounds[-2].answers.exp()
    expected.scaled("beta.0", method.share(rounds[0].answers.exp())[:, 0])
    expected.scaled("beta", method.share(before_the_last)[:, 0])
    assert method.infer_set(step).equal(rounds[-1].answers)


def test_transclip() -> None:
    settings, expected = published.case("transclip")
    method = methods.TransCLIP(surest=settings["confident"], neighbours=settings["n_neighbors"],
                               rounds=settings["max_iter"])  # fmt: skip
    step = a_set(expected)
    expected.scaled("start_mu", method.start(step).mean)
    rounds = [*method.rounds(step)]
    compare_rounds(settings, expected, rounds, step)
    for suffix, number in ((".0", 0), ("", -1)):
        expected.scaled(f"sigma{suffix}", rounds[number].classes.variance[0])
