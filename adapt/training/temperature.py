"""The choice of a temperature, on validation images or by cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapt import tasks
from adapt.common.errors import AdaptError
from adapt.data.folds import folds, usual_count
from adapt.data.item import Item
from adapt.evaluation.calibration import likeliest, spread, temperature
from adapt.evaluation.scores import Scores
from adapt.methods.base import Encoded, ImageStep, Method, trait
from adapt.methods.base.training import Part
from adapt.methods.base.traits import Stream
from adapt.models.base import Adapted
from adapt.models.features import of_texts
from adapt.models.image_model import ImageModel
from adapt.models.prediction import finite
from adapt.training.fitting import Fitting

logger = logging.getLogger("adapt")
FEW = 50  # images; on fewer, a temperature is uncertain
AT_MOST = 2**24  # held-out images times classes
FOLDS = (3, 16)  # the fewest and the most; in many, a model learns from nearly as many images as the final one


def calibrates_by_folds(method: Method) -> bool:
    """Return whether a temperature can be cross-validated, as for methods on fixed features without gradient steps."""
    return not (method.takes_steps or method.touches or method.views or trait(method, Stream))


def calibrates(model: Adapted, train_set: Sequence[Item], val_set: Sequence[Item], asked: bool | None) -> bool:
    """Return whether to calibrate `model`: as `asked`, or by default (None) if a temperature can be cross-validated.

    If it can be, but no image can be held out, a warning is logged. By default nothing is calibrated on data in which
    only other classes than those of the training images may be met, as where all of these are normal. Raises AdaptError
    if calibration is asked for, and the data do not allow it, or there are no images to choose a temperature on.
    """
    by_folds = isinstance(model, ImageModel) and calibrates_by_folds(model.method) and not of_texts(train_set)
    applies = bool(train_set and model.class_names) and tasks.of(train_set).one_class
    usual = by_folds and applies and not tasks.of(train_set).learns_unseen
    if asked is False or (asked is None and not usual):
        return False
    if not applies:
        task = tasks.of(train_set)
        if not task.one_class:
            raise AdaptError(f"calibrate needs one class per image, but the data has {task.title}: leave out calibrate")
        raise AdaptError(f"calibrate needs classes, but {model.backbone.describe()} has no classes: omit calibrate")
    if not (val_set or by_folds):
        raise AdaptError(
            "calibrate needs validation images to choose a temperature on: give some, or leave out calibrate"
        )
    if val_set or any(fold is not None for fold in folds(train_set, FOLDS[0], 0)):
        return True
    needs = "a class with at least two images (or groups of images), one of which can be held out"
    if asked:
        raise AdaptError(f"calibrate needs {needs}: give more images, or leave out calibrate")
    logger.warning("the probabilities are not calibrated, which needs %s", needs)
    return False


def answers_by_folds(training: Fitting) -> tuple[Tensor, Tensor] | None:
    """Return the cross-validated logits `(n, classes)` of the training images, and the labels of these images.

    A method's logits may be larger or smaller with fewer images, so those of a fold are divided by their spread on the
    images that it learned from. If the method cannot learn from the images of any fold, a warning is logged, and None
    is returned. Afterwards, the method is fitted to a fold, and must still be fitted to all training images.
    """
    logits, labels, why = list[Tensor](), list[Tensor](), ""
    fewest, most = FOLDS
    enough = AT_MOST / len(training.model.class_names)
    for fold in training.folds(max(fewest, usual_count(training.train_set, most))):
        if sum(map(len, labels)) > enough:  # those of further folds would say the same
            break
        try:
            replace(fold, val_set=()).prepare()  # a method must not see the images that are held out
        except AdaptError as error:
            why = str(error)
            continue
        logits.append(_logits(fold, "val") / (spread(_logits(fold, "train")) or 1.0))
        labels.append(fold.labels("val"))
    if not logits:
        logger.warning("the probabilities are not calibrated, because no image can be held out: %s", why)
        return None
    return torch.cat(logits), torch.cat(labels)


def _logits(training: Fitting, part: Part) -> Tensor:
    """Return the model's logits `(n, classes)` of the images in a part of the data."""
    model = training.classifier
    with torch.no_grad():
        return finite(model.answers.of(ImageStep(model, Encoded(training.features(part)))).double().cpu())


def calibrated(training: Fitting, before: Scores | None) -> dict[str, object]:
    """Set the model's temperature, and return the calibration entries for metrics.json.

    `before` contains the scores on the test images without a temperature.
    """
    model = training.model
    if training.held_back_answers is not None:
        logits, labels = training.held_back_answers
        chosen, images = likeliest(logits, labels) * (spread(_logits(training, "train")) or 1.0), len(labels)
    else:
        items = training.val_set
        chosen, images = temperature(model, items, workers=training.workers, cache=training.cache), len(items)
    if images < FEW:
        logger.warning(
            "the temperature %.3g, chosen on %d images, is uncertain, so probabilities may still be too high or too "
            "low: compare the calibration errors before and after, and give more images",
            chosen, images,
        )  # fmt: skip
    model.answers = replace(model.answers, temperature=chosen)
    figures: dict[str, object] = {"temperature": chosen, "images": images}
    if before is None:
        return figures
    return figures | {"error_before": before.calibration_error, "before": before.reliability()}
