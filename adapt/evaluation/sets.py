"""Sets of classes with a guarantee: their calibration on labelled images, and what they hold on others."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

from adapt import tasks
from adapt.common.errors import AdaptError
from adapt.data.bags import has_bags
from adapt.data.decoding.files import file_id
from adapt.data.item import Item, items_id
from adapt.evaluation import intervals
from adapt.evaluation.inference import Inference
from adapt.evaluation.intervals import Interval
from adapt.methods.base.traits import Grades, Stream, has_trait
from adapt.models.base import Adapted
from adapt.models.sets import MOST, Score, Sets

logger = logging.getLogger("adapt")
LEVEL = 0.9  # of which the promise is told


def calibrated(
    model: Adapted,
    items: Sequence[Item],
    score: Score = "lac",
    *,
    by_class: bool = False,
    learned: Collection[str] = (),
    inference: Inference | None = None,
) -> Sets:
    """Return the sets of `model`, calibrated on labelled images that it has not learned from.

    Nothing may have been chosen on the images either, such as a number of epochs, a setting or a temperature.
    `learned` are the ids (`file_id`) of images that it has, or that something was chosen on.

    Raises AdaptError if the model does not choose one of several classes for each image by itself, if an image was
    learned from or lacks a class of the model, and for more than 25,000 images.
    """
    _check(model, items)
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
    probabilities = task.answers(model, items, inference or Inference())
    # copies of an image are one image, under whatever name
    groups = [item.unit or item.group or file_id(item.path) or item.name for item in items]
    labels, bags = task.numbers(items, model.class_names), has_bags(items)
    return Sets.of(probabilities, labels, groups, score, by_class, model.settings_id, items_id(items), bags)


class Coverage(NamedTuple):
    """What sets at a level hold on labelled images: the share of images whose class is in their set, and so on.

    `size` is the mean number of classes in a set, `empty` the share of sets without a class, and `by_class` the
    coverage of each class that has images.
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
    _check(model, items)
    sets = model.sets_at(level, has_bags(items))
    if sets.images_id == items_id(items):
        logger.warning("the sets were calibrated on these %d images, so that their coverage says nothing", len(items))
    task = tasks.of(items)
    task.check_model(model, items)
    held = sets.hold(task.answers(model, items, inference or Inference()), level)
    labels = task.numbers(items, model.class_names)
    right, sizes = held.gather(1, labels[:, None])[:, 0], held.sum(1)
    return Coverage(
        level,
        float(right.double().mean()),
        intervals.of_share(right, [item.kept_with for item in items]),
        float(sizes.double().mean()),
        float((sizes == 0).double().mean()),
        {model.class_names[label]: float(right[labels == label].double().mean()) for label in labels.unique().tolist()},
    )


def _check(model: Adapted, items: Sequence[Item]) -> None:
    """Raise AdaptError if `model` and `items` are not of one class for each image by itself."""
    method = model.method
    if not items:
        raise AdaptError("there are no images: give labelled images")
    if not model.class_names or not model.classifies or not items[0].task.one_class or model.answers.several:
        raise AdaptError(
            f"sets are of classes, one of which is right for an image, but this {method.name} or the data is for "
            f"{items[0].task.title}: use an adapter and data with one class per image"
        )
    if has_trait(method, Grades) and method.tasks == {"targets"}:
        raise AdaptError(f"sets are of classes, and {method.name} predicts a number: use an adapter of classes")
    if has_trait(method, Stream):
        raise AdaptError(
            f"an answer of {method.name} depends on the images before it, and sets with a guarantee ask for answers "
            "that do not: use another method"
        )
