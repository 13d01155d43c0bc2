"""Settings that a recipe leaves to the data: chosen on validation images, or by cross-validation where there are none.

With validation images the rule is that of the published codes: the combination of values that tells most of them right,
the first of equals. Without, each training image is held back once, by stratified folds that keep groups whole. On few
images the most right answers are mostly luck, so the rule is another: of the combinations that are no more than two
standard errors behind the likeliest, the one nearest to the usual values. How likely a combination finds the right
classes is measured at its own best temperature, so that none wins by being more or less sure of itself. The method then
learns from all training images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapt.errors import AdaptError
from adapt.evaluation.noise import standard_error
from adapt.methods.base import Choice, Grid, trait
from adapt.methods.base.grid import configure
from adapt.training.fitting import Fitting

logger = logging.getLogger("adapt")
MOST_VALUES = 20  # of one setting in cross-validation: every so many of a longer list
WITHIN = 2.0  # standard errors behind the likeliest
TEMPERATURES = 10 ** torch.arange(-2, 3.01, 0.25)
AT_ONCE = 2**24  # numbers

_Combination = tuple[Any, ...]  # a value of each setting, in the order of the grid


def choose(training: Fitting, learned: bool = False) -> None:
    """Set what the method's grid leaves to the data, and note what was chosen, over what, and how right it was.

    On validation images the method may have `learned` from the training images already. Where no image can be held
    back, as with one image a class, the usual values are taken.
    """
    method = training.model.method
    grid, before = trait(method, Grid), method.config
    choices = {} if grid is None else grid.grid(training)
    if grid is None or not choices:
        return
    try:
        _choose(training, grid, choices, learned)
    except BaseException:
        method.config = before
        raise


def _choose(training: Fitting, grid: Grid, choices: Mapping[str, Choice], learned: bool) -> None:
    if training.items("val"):
        how = f"on {len(training.items('val'))} validation images"
        values, accuracy = _by_validation(training, grid, choices, learned)
    elif tried := _by_folds(training, grid, thinned := {name: _thinned(choice) for name, choice in choices.items()}):
        choices, (values, accuracy, images) = thinned, tried
        how = f"by cross-validation over {images} training images"
    else:
        how, accuracy = "as usual, since too few images are there to choose on", None
        values = tuple(choice.usual for choice in choices.values())
    _settle(training, choices, dict(zip(choices, values, strict=True)), how, accuracy)


def _by_validation(
    training: Fitting, grid: Grid, choices: Mapping[str, Choice], learned: bool
) -> tuple[_Combination, float]:
    labels, right = training.labels("val"), dict[_Combination, float]()
    weights = _weights(grid, labels)
    for settings, logits in grid.trials(training, choices, learned):
        right[_values(settings, choices)] = float(((logits.argmax(-1).cpu() == labels) * weights).mean())
    best = max(right, key=right.__getitem__)  # the first of equals
    return best, right[best]


def _by_folds(training: Fitting, grid: Grid, choices: Mapping[str, Choice]) -> tuple[_Combination, float, int] | None:
    """The choice, how right it was, and on how many images.

    None where no image can be held back, or where what is left of the images is too little for the method.
    """
    folds = training.folds()
    try:
        return _tried_on(grid, folds, choices) if folds else None
    except AdaptError as error:
        logger.info("%s cannot be tried on a part of these images: %s", training.model.method.name, error)
        return None


def _tried_on(grid: Grid, folds: Sequence[Fitting], choices: Mapping[str, Choice]) -> tuple[_Combination, float, int]:
    likely: dict[_Combination, list[Tensor]] = {}
    right: dict[_Combination, list[Tensor]] = {}
    for fold in folds:
        labels = fold.labels("val")
        for settings, logits in grid.trials(fold, choices):
            values, logits = _values(settings, choices), logits.cpu().float()
            likely.setdefault(values, []).append(_log_probabilities(logits, labels))
            right.setdefault(values, []).append(logits.argmax(-1) == labels)
    groups = [item.kept_with for fold in folds for item in fold.items("val")]
    weights = _weights(grid, torch.cat([fold.labels("val") for fold in folds]))
    weighted = {values: torch.cat(parts, 1) * weights for values, parts in likely.items()}
    chosen = _nearest_to_usual(weighted, choices, groups)
    return chosen, float((torch.cat(right[chosen]) * weights).mean()), len(groups)


def _weights(grid: Grid, labels: Tensor) -> Tensor:
    """How much each image counts `(n,)`, one on average: the same, or one over its class's number of images."""
    if not grid.balanced:
        return torch.ones(len(labels), dtype=torch.double)
    weights = 1 / labels.bincount().double()[labels]
    return weights / weights.mean()


def _log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """The logarithm of the right class's probability of each image, at each temperature: `(temperatures, n)`."""
    rows = max(1, AT_ONCE // (len(TEMPERATURES) * logits.shape[1]))
    parts = []
    for some, right in zip(logits.split(rows), labels.split(rows), strict=True):
        sharpened = some / TEMPERATURES[:, None, None]  # (temperatures, n, classes)
        own = sharpened[:, torch.arange(len(right)), right]
        parts.append(own - sharpened.logsumexp(-1))
    return torch.cat(parts, 1)


def _nearest_to_usual(
    likely: Mapping[_Combination, Tensor], choices: Mapping[str, Choice], groups: Sequence[str]
) -> _Combination:
    """The combination that is the fewest steps from the usual one, of those that nothing is surely better than."""
    at_best = {values: each[each.mean(1).argmax()].double() for values, each in likely.items()}
    best = max(at_best, key=lambda values: float(at_best[values].mean()))
    behind = {values: at_best[best] - own for values, own in at_best.items()}
    alike = [
        values for values, apart in behind.items() if float(apart.mean()) <= WITHIN * standard_error(apart, groups)
    ]
    usual = [_place(choice, choice.usual) for choice in choices.values()]

    def steps(values: _Combination) -> float:
        own = [_place(choice, value) for choice, value in zip(choices.values(), values, strict=True)]
        return sum(abs(one - other) for one, other in zip(own, usual, strict=True))

    return min(alike, key=lambda values: (steps(values), float(behind[values].mean())))


def _place(choice: Choice, value: float) -> int:
    """Where `value`, or what is nearest to it, stands among the choice's values."""
    return min(range(len(choice.values)), key=lambda place: abs(choice.values[place] - value))


def _thinned(choice: Choice) -> Choice:
    step = -(-len(choice.values) // MOST_VALUES)
    return choice._replace(values=choice.values[::-step][::-1])  # the last one stays


def _values(settings: Mapping[str, Any], choices: Mapping[str, Choice]) -> _Combination:
    return tuple(settings[name] for name in choices)


def _settle(
    training: Fitting, choices: Mapping[str, Choice], settings: dict[str, Any], how: str, accuracy: float | None
) -> None:
    """Put what was chosen into the method's settings, note it for metrics.json, and say it."""
    method = training.model.method
    configure(method, settings)
    among = {name: list(choice.values) for name, choice in choices.items()}
    training.note(chosen={"settings": settings, "among": among, "how": how, "accuracy": accuracy})
    listed = ", ".join(f"{name} {value:.4g}" for name, value in settings.items())
    logger.info(
        "%s: %s, chosen %s%s",
        method.name, listed, how, "" if accuracy is None else f" ({100 * accuracy:.1f} % right)",
    )  # fmt: skip
    for name, choice in choices.items():
        at_end = settings[name] in (choice.values[0], choice.values[-1]) and settings[name]
        if at_end and choice.open_ended and accuracy is not None:
            logger.info(
                "%s: %s was tried from %.4g to %.4g, and the choice lies at the end: set method.%s to try others",
                method.name, name, choice.values[0], choice.values[-1], name,
            )  # fmt: skip
