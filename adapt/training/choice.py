"""The choice of settings that are tuned on the data: on validation images, or else by cross-validation.

With validation images the rule is that of the published code, if there is one: the combination of values with the
highest accuracy, and the first one in a tie. On few images the highest accuracy is mostly luck, so the rule differs if
none is published, or if there are no validation images: of the combinations whose log-likelihood is within two standard
errors of the best, the one nearest to the usual values. The log-likelihood of a combination is measured at its own best
temperature, so that none wins by being more or less confident. A setting may be averaged instead: the logits under all
its values count by their likelihoods, once other settings are chosen. Where a method predicts numbers, absolute errors
take the place of likelihoods, and half a standard error that of two: settings of a regression differ by more than luck.

Without validation images each training image is held out once, by stratified folds that keep groups together. The
method then learns from all training images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.evaluation.intervals import standard_error
from adapt.methods.base import Choice, Grid, trait
from adapt.methods.base.traits import Grades, configure
from adapt.training.fitting import Fitting

logger = logging.getLogger("adapt")
MOST_VALUES = 20  # of one setting in cross-validation; a longer list is thinned evenly
WITHIN, WITHIN_NUMBERS = 2.0, 0.5  # standard errors below the best log-likelihood; above the smallest error
TEMPERATURES = 10 ** torch.arange(-2, 3.01, 0.25)
AT_ONCE = 2**24  # logits that are held at once, over all temperatures

_Combination = tuple[float, ...]  # a value of each setting, in the order of the grid


def choose(training: Fitting, learned: bool = False) -> None:
    """Tune the settings in the method's `grid` on the data, and record the chosen values and their accuracy or error.

    `learned` is true if the method has already learned from the training images. If no image can be held out, as with
    one image per class, the default values are used. The candidate values are recorded as well.
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
        if grid.most_accurate and not isinstance(grid, Grades) and training.labels("val").dim() == 1:
            settings, accuracy = _most_accurate(training, grid, choices, learned)
        else:
            settings, accuracy, _ = _likeliest(grid, [training], choices, learned)
    elif outcome := _by_folds(training, grid, thinned := {name: _thinned(choice) for name, choice in choices.items()}):
        choices, (settings, accuracy, images) = thinned, outcome
        how = f"by cross-validation over {images} training images"
    else:
        how, accuracy = "by default, because there are too few images to choose on", None
        settings = {name: choice.usual for name, choice in choices.items()}
    _settle(training, choices, settings, how, accuracy)


def _most_accurate(
    training: Fitting, grid: Grid, choices: Mapping[str, Choice], learned: bool
) -> tuple[dict[str, Any], float]:
    labels, right = training.labels("val"), dict[_Combination, float]()
    weights = _weights(grid, labels)
    for settings, logits in grid.trials(training, choices, learned):
        right[_values(settings, choices)] = float(((logits.argmax(-1).cpu() == labels) * weights).mean())
    best = max(right, key=right.__getitem__)  # the first one in a tie
    return dict(zip(choices, best, strict=True)), right[best]


def _by_folds(training: Fitting, grid: Grid, choices: Mapping[str, Choice]) -> tuple[dict[str, Any], float, int] | None:
    """Return the values chosen by cross-validation, their accuracy, and the number of held-out images.

    Return None if no image can be held out, or if the method cannot learn from the images of a fold.
    """
    folds = training.folds()
    try:
        return _likeliest(grid, folds, choices) if folds else None
    except AdaptError as error:
        logger.info("%s cannot be cross-validated on these images: %s", training.model.method.name, error)
        return None


def _likeliest(
    grid: Grid, trainings: Sequence[Fitting], choices: Mapping[str, Choice], learned: bool = False
) -> tuple[dict[str, Any], float, int]:
    """Return the chosen values, their accuracy and the number of images, on the validation images of all trainings.

    Accuracies of averaged values are averaged too. Where the method predicts numbers, minus the mean absolute error
    takes the place of the accuracy.
    """
    likely: dict[_Combination, list[Tensor]] = {}
    right: dict[_Combination, list[Tensor]] = {}
    grading = grid if isinstance(grid, Grades) else None
    for training in trainings:
        labels = training.labels("val")
        for settings, logits in grid.trials(training, choices, learned):
            values = _values(settings, choices)
            if grading is None:
                logits = logits.cpu().float()
                merits, several = _log_probabilities(logits, labels), labels.dim() == 2
                own = ((logits > 0) == labels).double().mean(-1) if several else logits.argmax(-1) == labels
            else:
                own = -(grading.score(logits).cpu() - training.values("val")).abs()
                merits = own[None]
            likely.setdefault(values, []).append(merits)
            right.setdefault(values, []).append(own)
    groups = [item.kept_with for training in trainings for item in training.items("val")]
    weights = _weights(grid, torch.cat([training.labels("val") for training in trainings]))
    weighted = {values: torch.cat(parts, 1) * weights for values, parts in likely.items()}
    chosen = _nearest_to_usual(weighted, choices, groups, WITHIN if grading is None else WITHIN_NUMBERS)
    shares = _shares(weighted, choices, groups, chosen)
    accuracy = fmean((float((torch.cat(right[values]) * weights).mean()) for values in shares), shares.values())
    settings = {
        name: {values[place]: share for values, share in shares.items()} if choice.averaged else chosen[place]
        for place, (name, choice) in enumerate(choices.items())
    }
    return settings, accuracy, len(groups)


def _weights(grid: Grid, labels: Tensor) -> Tensor:
    """Return image weights `(n,)` with mean 1, either equal or inverse to the number of images of the class."""
    if not grid.balanced or labels.dim() == 2:
        return torch.ones(len(labels), dtype=torch.double)
    weights = 1 / labels.bincount().double()[labels]
    return weights / weights.mean()


def _log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each image's true class, or classes, at each temperature, `(temperatures, n)`."""
    rows = max(1, AT_ONCE // (len(TEMPERATURES) * logits.shape[1]))
    parts = []
    for part, right in zip(logits.split(rows), labels.split(rows), strict=True):
        sharpened = part / TEMPERATURES[:, None, None]  # (temperatures, n, classes)
        if labels.dim() == 2:
            parts.append(F.logsigmoid(torch.where(right, sharpened, -sharpened)).sum(-1))
            continue
        own = sharpened[:, torch.arange(len(right)), right]
        parts.append(own - sharpened.logsumexp(-1))
    return torch.cat(parts, 1)


def _shares(
    likely: Mapping[_Combination, Tensor], choices: Mapping[str, Choice], groups: Sequence[str], chosen: _Combination
) -> dict[_Combination, float]:
    """Return the shares of the combinations that differ from the chosen one in averaged settings alone.

    A combination counts by exp((l - best) / sqrt(n)), where l is its log-likelihood over n images, or groups that share
    their luck, at its own best temperature, by which its logits are divided. Those below 0.0005 are left out.
    """
    averaged = [choice.averaged for choice in choices.values()]
    alike = [own for own in likely if all(free or one == other for free, one, other in zip(averaged, own, chosen))]
    at_best = [likely[values].double().mean(1).max(0) for values in alike]  # and the place of the temperature
    logs = [mean * len(set(groups)) ** 0.5 - TEMPERATURES[place].log() for mean, place in at_best]
    shares = torch.stack(logs).softmax(0).tolist()
    return {values: own for values, share in zip(alike, shares, strict=True) if (own := round(share, 3))}


def _nearest_to_usual(
    likely: Mapping[_Combination, Tensor],
    choices: Mapping[str, Choice],
    groups: Sequence[str],
    within: float = WITHIN,
) -> _Combination:
    """Return the combination nearest to the usual values, averaged ones aside, within the noise of the best one."""
    at_best = {values: each[each.mean(1).argmax()].double() for values, each in likely.items()}
    best = max(at_best, key=lambda values: float(at_best[values].mean()))
    behind = {values: at_best[best] - own for values, own in at_best.items()}
    within_noise = [
        values for values, gap in behind.items() if float(gap.mean()) <= within * standard_error(gap, groups)
    ]

    def steps(values: _Combination) -> float:
        own = [(choice, value) for choice, value in zip(choices.values(), values, strict=True) if not choice.averaged]
        return sum(abs(_place(choice, value) - _place(choice, choice.usual)) for choice, value in own)

    return min(within_noise, key=lambda values: (steps(values), float(behind[values].mean())))


def _place(choice: Choice, value: float) -> int:
    """Return the index of the value in `choice.values` that is nearest to `value`."""
    return min(range(len(choice.values)), key=lambda place: abs(choice.values[place] - value))


def _thinned(choice: Choice) -> Choice:
    step = -(-len(choice.values) // MOST_VALUES)
    return choice._replace(values=choice.values[::-step][::-1])  # keeps the last one


def _values(settings: Mapping[str, float], choices: Mapping[str, Choice]) -> _Combination:
    return tuple(settings[name] for name in choices)


def _settle(
    training: Fitting, choices: Mapping[str, Choice], settings: dict[str, Any], how: str, accuracy: float | None
) -> None:
    """Set the chosen settings in the method, record the settings for metrics.json, and log a summary."""
    method = training.model.method
    configure(method, settings)
    among = {name: list(choice.values) for name, choice in choices.items()}
    figure, shown = {"accuracy": accuracy}, "" if accuracy is None else f" ({100 * accuracy:.1f} % right)"
    if trait(method, Grades) and accuracy is not None:
        figure, shown = {"mean_absolute_error": -accuracy}, f" (mean absolute error {-accuracy:.4g})"
    training.note(chosen={"settings": settings, "among": among, "how": how, **figure})
    listed = ", ".join(f"{name} {own if isinstance(own, dict) else f'{own:.4g}'}" for name, own in settings.items())
    logger.info("%s: %s, chosen %s%s", method.name, listed, how, shown)
    for name, choice in choices.items():
        at_end = settings[name] in (choice.values[0], choice.values[-1]) and settings[name]
        if at_end and choice.open_ended and accuracy is not None:
            logger.info(
                "%s: the setting %s was tried from %.4g to %.4g, and the chosen value is at an end of this range: "
                "set method.%s to try values outside the range",
                method.name, name, choice.values[0], choice.values[-1], name,
            )  # fmt: skip
