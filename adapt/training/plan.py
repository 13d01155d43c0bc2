"""The plan of a training: everything that is decided, and refused, before an image is decoded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from pydantic import ValidationError

from adapt import methods, tasks
from adapt.common.errors import AdaptError
from adapt.common.validation import explain
from adapt.data.bags import BagPooling, has_bags, singles, views_of
from adapt.data.item import Item, items_id
from adapt.data.split import are_turned, folds, held_back
from adapt.methods.base import Method, trait
from adapt.methods.base.class_loss import CROSS_ENTROPY, ClassLoss
from adapt.methods.base.training import Part
from adapt.methods.base.traits import PoolsBags, Stream, chosen_setting, has_trait, needs_labels, reads_unlabelled
from adapt.models.base import Adapted, is_native
from adapt.models.features import keeps_features, of_texts
from adapt.models.image_model import ImageModel
from adapt.prompts import several
from adapt.recipe.settings import TrainSettings
from adapt.tasks import Task
from adapt.training.loop import precision_on
from adapt.training.processes import ALONE, Processes, dividing, processes_on

logger = logging.getLogger("adapt")
# the fewest, and the most: in many folds a model learns from nearly as many images as the final one
CALIBRATION_FOLDS = 3, 16
_TO_HOLD_OUT = "a class with at least two images (or groups of images), one of which can be held out"


@dataclass(frozen=True)
class TrainingPlan:
    """The model, the items and the settings of a training, which `planned` has checked.

    `chosen` contains the complete, checked settings of the gradient steps, or None for a method without gradient steps.
    `given` contains the settings that the user gave to `fit`, if the plan has no `recipe`.
    """

    model: Adapted
    train_set: Sequence[Item]
    val_set: Sequence[Item] = ()
    unlabelled_set: Sequence[Item] = ()
    test_set: Sequence[Item] = ()
    chosen: TrainSettings | None = None
    seed: int = 1
    template: str = "a photo of a {}."
    cache: bool = True
    calibrate: bool = False
    watch: bool = False
    recipe: dict[str, object] | None = None
    given: dict[str, object] = field(default_factory=dict)
    processes: Processes = ALONE

    @property
    def settings(self) -> TrainSettings:
        """The settings of the gradient steps. Raises AdaptError for a method without gradient steps."""
        if self.chosen is None:
            raise AdaptError(f"{self.model.method.name} is not trained by gradient steps, and has no training settings")
        return self.chosen

    @property
    def workers(self) -> int:
        """The number of processes that decode images."""
        return self.chosen.workers if self.chosen else 2

    @property
    def origin(self) -> dict[str, object]:
        """The recipe of the training run, or the arguments of `fit`, for the run directory and for trackers."""
        if self.recipe is not None:
            return self.recipe
        method = {"name": self.model.method.name, **self.model.method.config.model_dump(mode="json")}
        classes = list(self.model.class_names)
        return {"method": method, "classes": classes, "train": self.given, "seed": self.seed}

    @cached_property
    def train_id(self) -> str:
        """The hash of the training images, with their captions."""
        return items_id(self.train_set, captions=True)

    def items(self, part: Part) -> Sequence[Item]:
        """Return the items of the data split `part`."""
        return {"train": self.train_set, "val": self.val_set, "unlabelled": self.unlabelled_set}[part]


def planned(
    model: Adapted,
    train_set: Sequence[Item],
    test_set: Sequence[Item],
    *,
    val_set: Sequence[Item],
    unlabelled_set: Sequence[Item] = (),
    seed: int = 1,
    template: str = "a photo of a {}.",
    cache: bool = True,
    blend: float | None = None,
    calibrate: bool | None = None,
    pooling: BagPooling = "features",
    watch: bool = False,
    **settings: Any,
) -> TrainingPlan:
    """Return the plan of a training, from the arguments of `fit`.

    Raises AdaptError for every mistake that `fit` can detect before an image is opened.
    """
    if not 0 <= seed < 2**63:
        raise AdaptError(f"seed is {seed}; expected a whole number from 0 to 2^63 - 1")
    model.turn(are_turned(chain(train_set, val_set, test_set)))
    chosen = _settings(model, settings, cache, tasks.of(train_set) if train_set else None)
    if chosen is not None and (share := chosen.holdout):
        if val_set:
            raise AdaptError(f"train.holdout is {share:g}, but there are validation items: leave out train.holdout")
        train_set, val_set = held_back(train_set, share, seed)
        if not val_set:
            raise AdaptError(f"train.holdout needs {_TO_HOLD_OUT}: give more images, or leave out train.holdout")
    if chosen is not None and chosen.keep == "best" and not (val_set and tasks.of(val_set).scored):
        raise AdaptError("train.keep is best, but no labelled validation items tell which: give some, or train.holdout")
    model.answers = replace(model.answers, pooling=pooling)
    if pooling == "logits":
        train_set = singles(train_set)
    _check_parts(model, train_set, val_set, test_set)
    train_set, unlabelled_set = _learned_from(model.method, train_set, unlabelled_set)
    if chosen is not None:
        weights = None
        if chosen.class_weights == "balanced":
            weights = tasks.of(train_set).class_weights(train_set, model.class_names).clamp_min(1e-6)
            weights = weights.to(model.backbone.device)
        held_to = tuple(several(template)) if "kl" in chosen.terms else ()
        model.class_loss = ClassLoss(chosen.objective, weights, held_to)
    if watch:
        from adapt.evaluation.watching import check_watch

        check_watch(model, train_set)
    if blend is not None:
        model.answers = model.blended(blend, template).answers
    processes = dividing(processes_on(model.backbone.device), model, train_set, chosen, cache)
    return TrainingPlan(
        model,
        train_set,
        val_set,
        unlabelled_set,
        test_set,
        chosen=chosen,
        seed=seed,
        template=template,
        cache=cache,
        calibrate=calibrates(model, train_set, val_set, calibrate),
        watch=watch,
        given=settings,
        processes=processes,
    )


def _check_parts(model: Adapted, train_set: Sequence[Item], val_set: Sequence[Item], test_set: Sequence[Item]) -> None:
    """Raise AdaptError if `model` cannot learn from the training items, or be scored on validation or test items."""
    for part in filter(None, (train_set, val_set, test_set)):
        tasks.of(part).check_model(model, part)
        model.check_items(part)
    for part in filter(None, (val_set, test_set)):
        tasks.of(part).check_tested(model, part)
        if (pools := trait(model.method, PoolsBags)) and has_bags(train_set):
            pools.check_views(views_of(part), {name for _, name in views_of(train_set)})
    if train_set or needs_labels(model.method):
        _check_train(model, train_set, val_set)


def _check_train(model: Adapted, train_set: Sequence[Item], val_set: Sequence[Item]) -> None:
    """Raise AdaptError if `model` cannot learn from the training items."""
    task = tasks.of(train_set)
    check_learned(model.method, task, "the training data")
    if of_texts(train_set) and task.classes_are and not keeps_features(model, cache=True):
        raise AdaptError(
            f"the data has texts instead of training images, but {model.method.name} on {model.backbone.describe()} "
            "learns from images: use a method that does not edit the vision tower, such as close"
        )
    method, needed = model.method, chosen_setting(model.method)
    task.check_learnt(method, train_set)
    if has_trait(method, PoolsBags) and not has_bags(train_set):
        raise AdaptError(
            f"{method.name} learns which images of an item count, but every training item has one image: give a .csv "
            "with a column item, or folders by items:FOLDER, without pooling=logits"
        )
    if needed is not None and not val_set:
        raise AdaptError(
            f"{method.name} chooses {needed} on validation images, but there are no validation images: give some, or "
            f"set method.{needed}"
        )
    with_images = {name for item in train_set for name in item.class_names}
    missing = [name for name in model.class_names if name not in with_images]
    if model.needs_every_class and missing:
        who = method.name if method.needs_every_class else model.backbone.describe()
        raise AdaptError(f"{who} needs an image of every class, but {missing[0]!r} has none: add an image")


def check_learned(method: Method, task: Task, name: str) -> None:
    """Raise AdaptError, which suggests other methods, if `method` cannot learn the `task` of the data called `name`."""
    if task.learned_by(method):
        return
    able = ", ".join(
        each.name for each in methods.classes() if task.learned_by(each) and task.backbones & set(each.serves)
    )
    learned = [tasks.named(each) for each in sorted(method.tasks)]
    columns = " or ".join(", ".join(sorted(each.needs)) for each in learned if each.needs)
    raise AdaptError(
        f"{name} contains {task.items_are}, but {method.name} learns {', '.join(each.name for each in learned)}: give "
        f"a list with the columns {columns}, or use one of the methods {able}"
    )


def _learned_from(
    method: Method, train_set: Sequence[Item], unlabelled_set: Sequence[Item]
) -> tuple[Sequence[Item], Sequence[Item]]:
    """Return the labelled and unlabelled items that `method` learns from; without its labels, an item is unlabelled.

    Raises AdaptError if the method needs unlabelled images and there are none, or the other way round.
    """
    if not reads_unlabelled(method):
        if unlabelled_set:
            raise AdaptError(f"{method.name} does not learn from unlabelled images: leave out unlabelled_set")
        return train_set, ()
    if not needs_labels(method):
        train_set = [item.without_label() for item in singles((*train_set, *unlabelled_set))]
        tasks.of(train_set)  # there are some
        return train_set, ()
    if not unlabelled_set:
        raise AdaptError(
            f"{method.name} with these settings learns from unlabelled images too, but the data has none: give some in "
            "a folder unlabelled, or in lines of a .csv without a label"
        )
    return train_set, unlabelled_set


def _settings(model: Adapted, settings: dict[str, Any], cache: bool, task: Task | None) -> TrainSettings | None:
    """Return the checked training settings with the precision resolved, or None for a method without gradient steps."""
    if not model.method.takes_steps:
        if settings:
            raise AdaptError(
                f"{model.method.name} is not trained by gradient steps: leave out {', '.join(sorted(settings))}"
            )
        return None
    try:
        chosen = TrainSettings(**settings).at(None)
    except ValidationError as error:
        raise AdaptError(explain(TrainSettings, error, "fit")) from None
    _check_loss(model, chosen, task)
    if chosen.group_by_length and not is_native(model):
        raise AdaptError(
            f"train.group_by_length is for conversations, but {model.backbone.describe()} is a {model.backbone.kind}, "
            "whose inputs are of one length: leave out train.group_by_length"
        )
    if settings.get("augment") == "published" and is_native(model):
        raise AdaptError(
            f"train.augment is published, but the processor of {model.backbone.describe()} prepares images as they "
            "are, with nothing drawn: set train.augment=none"
        )
    through_towers = bool(model.method.touches) or not keeps_features(model, cache)
    precision = precision_on(model.backbone.device, chosen.precision, through_towers)
    return chosen.model_copy(update={"precision": precision})


def _check_loss(model: Adapted, settings: TrainSettings, task: Task | None) -> None:
    """Raise AdaptError for a setting of the loss that has no effect on this model, this method or these data."""
    edited = isinstance(model, ImageModel) and "vision" in model.method.touches
    if settings.terms.get("distill") and not edited:
        raise AdaptError(
            f"train.terms has distill: {settings.terms['distill']:g}, but {model.method.name} on "
            f"{model.backbone.describe()} does not change image features, so that distill has no effect: leave out "
            "distill"
        )
    if settings.class_weights != "equal" and not model.class_names:
        raise AdaptError("train.class_weights needs classes, but the data has no classes: omit train.class_weights")
    if settings.class_weights != "equal" and is_native(model) and settings.objective == CROSS_ENTROPY:
        raise AdaptError(
            f"train.class_weights is for losses over classes, but cross-entropy of a {model.backbone.kind} is over the "
            "tokens of answers: set train.objective to another one, such as arcsin, or omit train.class_weights"
        )
    of_classes = {"objective": settings.objective != CROSS_ENTROPY, "terms.kl": "kl" in settings.terms}
    asked = [name for name, is_set in of_classes.items() if is_set]
    if asked and not (task and task.has_class_loss and model.class_names):
        has = task.title if task and not task.has_class_loss else "no class names"
        raise AdaptError(f"train.{asked[0]} needs one class per image, but the data has {has}: omit train.{asked[0]}")
    if "kl" in settings.terms and model.backbone.kind == "vision encoder":
        raise AdaptError(
            f"train.terms has kl, but {model.backbone.describe()} knows no classes before training, so that there are "
            "no answers to be held to: leave out kl"
        )
    asked += ["class_weights"] * (settings.class_weights != "equal")
    if asked and not model.method.weighs_classes:
        raise AdaptError(
            f"train.{asked[0]} needs a loss over classes, but the loss of {model.method.name} has no such term: omit "
            f"train.{asked[0]}"
        )


def calibrates_by_folds(method: Method) -> bool:
    """Return whether a temperature can be cross-validated, as for methods on fixed features without gradient steps."""
    return not (method.takes_steps or method.touches or method.reads or method.views or trait(method, Stream))


def calibrates(model: Adapted, train_set: Sequence[Item], val_set: Sequence[Item], asked: bool | None) -> bool:
    """Return whether to calibrate `model`: as `asked`, or by default (None) if a temperature can be cross-validated.

    If it can be, but no image can be held out, a warning is logged. By default nothing is calibrated where images may
    have several labels, and on data in which only other classes than those of the training images may be met, as where
    all of these are normal. Raises AdaptError if calibration is asked for, and the data do not allow it, or there are
    no images to choose a temperature on.
    """
    by_folds = isinstance(model, ImageModel) and calibrates_by_folds(model.method) and not of_texts(train_set)
    task = tasks.of(train_set) if train_set and model.class_names else None
    applies = task is not None and (task.one_class or task.several)
    usual = task is not None and by_folds and task.one_class and not task.learns_unseen
    if asked is False or (asked is None and not usual):
        return False
    if not applies:
        if train_set and not (task := tasks.of(train_set)).one_class:
            raise AdaptError(
                f"calibrate needs one class per image or several labels, but the data has {task.title}: leave it out"
            )
        raise AdaptError(f"calibrate needs classes, but {model.backbone.describe()} has no classes: omit calibrate")
    if not (val_set or by_folds):
        raise AdaptError(
            "calibrate needs validation images to choose a temperature on: give some, or leave out calibrate"
        )
    if val_set or any(fold is not None for fold in folds(train_set, CALIBRATION_FOLDS[0], 0)):
        return True
    if asked:
        raise AdaptError(f"calibrate needs {_TO_HOLD_OUT}: give more images, or leave out calibrate")
    logger.warning("the probabilities are not calibrated, which needs %s", _TO_HOLD_OUT)
    return False
