"""Averages of the probabilities of five seeds and of three methods, beside their members and the soup of the seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.evaluation.evaluate import evaluate
from adapt.recipe import read_recipe
from benchmarks.drawings import SEEN, drawings, row_of, trained
from benchmarks.measure import Row

SHOTS, SEEDS, METHODS = 16, (1, 2, 3, 4, 5), ("gda", "clap", "linear_probe")


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each member, average and soup: accuracy, calibration error and log-loss on the test images."""
    seeds, kinds = list[AdaptedModel](), list[AdaptedModel]()
    for seed in SEEDS:
        progress(f"coop, seed {seed}")
        seeds.append(_trained("coop", seed))
    for name in METHODS:
        progress(name)
        kinds.append(_trained(name, SEEDS[0]))
    for title, models, names in (("five seeds of coop", seeds, map(str, SEEDS)), ("three methods", kinds, METHODS)):
        figures = [_figures(model) for model in models]
        for name, own in zip(names, figures, strict=True):
            yield _row(f"{title}: {name}", own)
        yield _row(f"{title}: mean of the members", [mean(each) for each in zip(*figures, strict=True)])
        average = adapt.average(models)
        yield _row(f"{title}: average", _figures(average))
        yield row_of(f"{title}: right by disagreement", _by_disagreement(average))
    yield _row("five seeds of coop: soup", _figures(adapt.soup(seeds)))


def _trained(name: str, seed: int) -> AdaptedModel:
    recipe = read_recipe(name, [("seed", seed), ("backbone", "mini-clip")], SEEN)
    return trained(recipe, drawings(SEEN).few_shot(SHOTS, seed))


def _figures(model: Any) -> list[float]:
    """Return accuracy and calibration error in per cent, and the mean negative log-likelihood in nats."""
    items = drawings(SEEN).test
    scores, labels = evaluate(model, items), [model.class_names.index(item.answer) for item in items]
    likely = model.probabilities([item.path for item in items])[torch.arange(len(items)), torch.tensor(labels)]
    return [100 * scores.accuracy, 100 * scores.calibration_error, -float(likely.log().mean())]


def _row(case: str, figures: Sequence[float]) -> Row:
    accuracy, error, nats = figures
    return row_of(case, {"accuracy": f"{accuracy:.1f} %", "calibration": f"{error:.1f} %", "nats": f"{nats:.2f}"})


def _by_disagreement(model: Any) -> dict[str, str]:
    """Return the accuracy where all members name one class, and elsewhere, and how well each figure finds errors."""
    items = drawings(SEEN).test
    found = model.predict([item.path for item in items])
    wrong = torch.tensor([each.class_name != item.answer for each, item in zip(found, items, strict=True)])
    apart = torch.tensor([each.disagreement for each in found])
    unsure = 1 - torch.tensor([each.probability for each in found])
    agreed = apart[:, 0] == 0
    cells = {
        "all name one class": f"{int(agreed.sum())} images, {_right(wrong[agreed])}",
        "some name another": f"{int((~agreed).sum())} images, {_right(wrong[~agreed])}",
    }
    for name, score in {"share": apart[:, 0], "nats": apart[:, 1], "1 - probability": unsure}.items():
        cells[f"AUROC of {name}"] = f"AUROC of {name} {_auroc(score, wrong):.2f}"
    return cells


def _right(wrong: Tensor) -> str:
    return f"{100 * float((~wrong).double().mean()):.1f} % right"


def _auroc(scores: Tensor, wrong: Tensor) -> float:
    """Return the probability that a wrong answer has a higher score than a right one, where equal ones count half."""
    apart = scores[wrong][:, None] - scores[~wrong]
    return float(((apart > 0).double() + (apart == 0).double() / 2).mean())
