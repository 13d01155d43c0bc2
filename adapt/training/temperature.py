"""The choice of a temperature, on validation images or by cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapt import tasks
from adapt.common.errors import AdaptError
from adapt.data.folds import folds
from adapt.data.item import Item
from adapt.evaluation.calibration import BOUNDS, likeliest, temperature
from adapt.evaluation.scores import Scores
from adapt.methods.base import Encoded, ImageStep, Method, trait
from adapt.methods.base.traits import Stream
from adapt.models.base import Adapted
from adapt.training.fitting import FOLDS, Fitting

logger = logging.getLogger("adapt")
FEW = 50  # images; on fewer, a temperature is uncertain


def calibrates_by_folds(method: Method) -> bool:
    """Return whether a temperature can be cross-validated, as for methods on fixed features without gradient steps."""
    return not (method.takes_steps or method.touches or method.views or trait(method, Stream))


def check_calibration(model: Adapted, train_set: Sequence[Item], val_set: Sequence[Item]) -> None:
    """Raise AdaptError if the data do not allow calibration, or if there are no images to choose a temperature on."""
    task = tasks.of(train_set)
    if not task.one_class:
        raise AdaptError(f"calibrate needs one class per image, but the data has {task.title}: leave out calibrate")
    if not model.class_names:
        raise AdaptError(f"calibrate needs classes, but {model.backbone.describe()} has no classes: omit calibrate")
    if not (val_set or calibrates_by_folds(model.method)):
        raise AdaptError(
            "calibrate needs validation images to choose a temperature on: give some, or leave out calibrate"
        )
    if not val_set and all(fold is None for fold in folds(train_set, FOLDS, 0)):
        raise AdaptError("calibrate needs a class with at least two images: give more images, or leave out calibrate")


def answers_by_folds(training: Fitting) -> tuple[Tensor, Tensor]:
    """Return the cross-validated logits `(n, classes)` of the training images, and the labels of these images.

    Afterwards, the method is fitted to the last fold, and must still be fitted to all training images.
    """
    model, logits, labels = training.classifier, list[Tensor](), list[Tensor]()
    answers = replace(model.answers, temperature=1.0)  # without an earlier temperature
    for fold in training.folds():
        fold.prepare()
        with torch.no_grad():
            logits.append(answers.of(ImageStep(model, Encoded(fold.features("val")))).cpu())
        labels.append(fold.labels("val"))
    return torch.cat(logits), torch.cat(labels)


def calibrated(training: Fitting, before: Scores | None) -> dict[str, object]:
    """Set the model's temperature, and return the calibration entries for metrics.json.

    `before` contains the scores on the test images without a temperature.
    """
    model = training.model
    if training.held_back_answers is not None:
        logits, labels = training.held_back_answers
        chosen, images = likeliest(logits.double(), labels), len(labels)
    else:
        items = training.val_set
        chosen, images = temperature(model, items, workers=training.workers, cache=training.cache), len(items)
    if images < FEW or chosen in BOUNDS:
        logger.warning(
            "the temperature %.3g, chosen on %d images, is uncertain, because the images are few or the value is at "
            "an end of the range of temperatures, so probabilities may still be too high or too low: compare the "
            "errors before and after calibration, and give more images",
            chosen, images,
        )  # fmt: skip
    model.answers = replace(model.answers, temperature=chosen)
    figures: dict[str, object] = {"temperature": chosen, "images": images}
    if before is None:
        return figures
    return figures | {"error_before": before.calibration_error, "before": before.reliability()}
