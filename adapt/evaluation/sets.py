"""Sets of classes and intervals of numbers with a guarantee: their calibration, and what they hold on other images."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt import tasks
from adapt.common.errors import AdaptError
from adapt.data.bags import has_bags
from adapt.data.decoding.files import file_id
from adapt.data.item import Item, items_id
from adapt.data.split import kept_together
from adapt.evaluation import intervals
from adapt.evaluation.inference import Inference
from adapt.evaluation.intervals import Interval
from adapt.methods.base.traits import Grades, OverSet, Stream, has_trait
from adapt.models.base import Adapted
from adapt.models.image_model import ImageModel
from adapt.models.sets import EVERY, MOST, RESIDUAL, Calibration, OfImages, Score, Sets

logger = logging.getLogger("adapt")
LEVEL = 0.9  # of which the promise is told


def calibrated(
    model: Adapted,
    items: Sequence[Item],
    score: Score | None = None,
    *,
    by_class: bool = False,
    together: bool = False,
    learned: Collection[str] = (),
    inference: Inference | None = None,
) -> Sets:
    """Return the sets of `model`, calibrated on labelled images that it has not learned from; intervals for numbers.

    `score` is `lac` by default. With `together`, the sets are of images that are answered together (Conf-OT).
    Nothing may have been chosen on the images either, such as a number of epochs, a setting or a temperature.
    `learned` are the ids (`file_id`) of images that it has, or that something was chosen on.

    Raises AdaptError if the model neither chooses classes for each image by itself nor predicts a number, if an image
    was learned from or lacks a class of the model, and for more than 25,000 images.
    """
    numbers, bags = _numbers(model, items), has_bags(items)
    if (model.answers.several or numbers is not None) and (score or by_class or together):
        how = "a number, whose interval is by the errors of numbers"
        how = how if numbers is not None else "several labels, whose sets are by the least probable one of an image"
        raise AdaptError(f"{model.method.name} predicts {how}: leave out score, by_class and together")
    if together and (bags or not isinstance(model, ImageModel) or has_trait(model.method, OverSet)):
        raise AdaptError(
            "sets of images that are answered together are by the logits of single images, each by itself: leave "
            f"together out for {model.method.name} on {model.backbone.describe()} and for items of several images"
        )
    if len(items) > MOST:
        raise AdaptError(f"there are {len(items):,} images to calibrate on; expected at most {MOST:,}: give fewer")
    seen = set(learned) - {""}
    if known := [item for item in items if not seen.isdisjoint(map(file_id, item.paths))]:
        raise AdaptError(
            f"the adapter has learned from {len(known):,} of these {len(items):,} images, such as {known[0].name!r}, "
            "or something was chosen on them: calibrate on images that played no part in the training"
        )
    task = tasks.of(items)
    task.check_model(model, items)
    groups = kept_together(items)  # in which copies of an image are one image
    inference, told = inference or Inference(), (model.settings_id, items_id(items), bags)
    if numbers is not None:
        return Sets.of(task.answers(model, items, inference)[:, 0], numbers, groups, RESIDUAL, False, *told)
    labels = task.numbers(items, model.class_names)
    by: OfImages = score or (EVERY if task.several else "lac")
    if together:
        number = {group: at for at, group in enumerate(dict.fromkeys(groups))}
        logits = inference.all_logits(model, items).float()
        kept = Calibration(logits, labels, torch.tensor([number[group] for group in groups]))
        return Sets(by, by_class, (), (), *told, kept).beside(logits[:0])[0]
    return Sets.of(task.answers(model, items, inference), labels, groups, by, by_class, *told)


def of_members(average: Any, items: Sequence[Item], inference: Inference) -> Tensor:
    """Return the probabilities `(m, n, c)` of items by the members of an average (`AverageOfAdapters`)."""
    return torch.cat([*inference.of_batches(average, items, average.method.by_member)], 1).exp().cpu()


class Coverage(NamedTuple):
    """What sets at a level hold on labelled images: the share of images whose class is in their set, and so on.

    `size` is the mean number of classes in a set, or the width of intervals of numbers, `empty` the share of sets
    without a class, and `by_class` the coverage of each class that has images; it is empty for numbers.
    """

    level: float
    coverage: float
    interval: Interval
    size: float
    empty: float
    by_class: dict[str, float]


def measured(model: Adapted, items: Sequence[Item], level: float, inference: Inference | None = None) -> Coverage:
    """Return what the sets of `model` hold on labelled `items`.

    Where the items are those of the calibration, a warning is logged. Raises AdaptError like `calibrated`, and for a
    model without sets.
    """
    numbers, sets = _numbers(model, items), model.answers.sets
    sets = model.sets_at(level, has_bags(items), sets is not None and sets.together)
    if sets.images_id == items_id(items):
        logger.warning("the sets were calibrated on these %d images, so that their coverage says nothing", len(items))
    task = tasks.of(items)
    task.check_model(model, items)
    inference, of_classes = inference or Inference(), dict[str, float]()
    if numbers is not None:
        ends = sets.around(task.answers(model, items, inference)[:, 0], level)
        low, high = torch.tensor(ends, dtype=torch.double).unbind(1)
        right, sizes = (low <= numbers) & (numbers <= high), high - low
    else:
        if sets.together:
            sets, answers = sets.beside(inference.all_logits(model, items))
            answers = answers.exp()
        else:
            answers = (of_members if sets.crossed else task.answers)(model, items, inference)
        held, truth = sets.hold(answers, level), task.numbers(items, model.class_names)
        truth = truth if task.several else F.one_hot(truth, len(model.class_names)).bool()
        right, sizes = (held | ~truth).all(1), held.sum(1)
        for label in truth.any(0).nonzero()[:, 0].tolist():
            of_classes[model.class_names[label]] = float(held[truth[:, label], label].double().mean())
    return Coverage(
        level,
        float(right.double().mean()),
        intervals.of_share(right, [item.kept_with for item in items]),
        float(sizes.double().mean()),
        float((sizes == 0).double().mean()),
        of_classes,
    )


def _numbers(model: Adapted, items: Sequence[Item]) -> Tensor | None:
    """Return the true numbers `(n,)` of the items if `model` predicts numbers, and None if it chooses among classes.

    Raises AdaptError if it does neither, or if the items are of the other kind.
    """
    method = model.method
    if not items:
        raise AdaptError("there are no images: give labelled images")
    if has_trait(method, Grades) and method.tasks == {"targets"}:
        numbers = items[0].task.values(items)
        if numbers is None or not tasks.of(items).compares(method):
            raise AdaptError(f"{method.name} predicts a number, and the data has none: use data with a column target")
        return numbers
    task = items[0].task
    fits = (task.one_class or task.several) and task.several == model.answers.several
    if not model.class_names or not model.classifies or not fits:
        raise AdaptError(
            f"sets are of classes, one or several of which are right for an image, but this {method.name} or the data "
            f"is for {task.title}: use an adapter and data with one class per image, or both with several"
        )
    if has_trait(method, Stream):
        raise AdaptError(
            f"an answer of {method.name} depends on the images before it, and sets with a guarantee ask for answers "
            "that do not: use another method"
        )
    return None
