"""Training by a recipe: reading its data, building its model, and the run that trains an adapter."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from adapt import tasks
from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.common.devices import chosen, keeping_rng
from adapt.common.errors import AdaptError
from adapt.common.progress import counting_bar
from adapt.common.shown import shown
from adapt.data.check import without_broken, without_copies
from adapt.data.readers import folder_of
from adapt.data.split import Split
from adapt.methods.base.traits import LearnsUnseen, chosen_setting, has_trait, needs_labels, reads_unlabelled
from adapt.models.base import Adapted
from adapt.models.wrap import wrap
from adapt.recipe import Recipe
from adapt.tracking import Track, trackers
from adapt.training.fit import fit_plan
from adapt.training.plan import TrainingPlan, calibrates_by_folds, check_learned, planned
from adapt.training.processes import processes_on
from adapt.training.result import Result
from adapt.training.run import Run
from adapt.training.start import check_start, start_from

logger = logging.getLogger("adapt")


def read_data(recipe: Recipe, progress: bool = False) -> Split:
    """Return the recipe's data, reduced to the few-shot sample, after checking that all images can be decoded.

    Raises the same errors as `listed_data` and `decodable`.
    """
    return decodable(listed_data(recipe), recipe, progress)


def listed_data(recipe: Recipe, unlabelled: bool = False, known: Collection[str] = ()) -> Split:
    """Return the recipe's data, reduced to the few-shot sample, without opening an image.

    Unlabelled images are left out if the recipe's method does not learn from them, unless `unlabelled` is true. If the
    data are added to others, `known` are the classes of the others, which may have no or few training images here.

    Raises AdaptError if there are no training images, or if the method cannot learn from the data.
    """
    method = recipe.new_method()
    unseen = bool(known) or has_trait(method, LearnsUnseen) or not needs_labels(method)
    split = recipe.data.load(unseen, note=True)
    if not (split.train or (split.unlabelled and not needs_labels(method))):
        raise AdaptError(f"{recipe.data.source} has no training images: give data with training images")
    # if it came without parts, what was cut off for validation is for training too
    parts: dict[str, Any] = {} if split.ratios is None else {"train": split.train + split.val, "val": ()}
    split = replace(split, rows=len([*split.items(), *split.unlabelled]), **parts)
    split = whole = with_validation(split, recipe)
    check_learned(method, tasks.of(split.items()), split.name)
    if recipe.data.shots is not None and split.class_names and split.train:
        split = split.few_shot(recipe.data.shots, recipe.seed, recipe.data.sampling)
        _note_short(split, recipe.data.shots, known)
    elif recipe.data.shots is not None and split.train:
        logger.warning(
            "data.shots is %d, but %s have no classes to sample from: all %d items are used, as with --shots all",
            recipe.data.shots, split.task.items_are, len(split.train),
        )  # fmt: skip
    split = split.only(recipe.data.classes)
    if why := split.task.nothing_to_learn(split.train, [*split.class_names, *known]):
        logger.warning("%s has %s", shown(split.name), why)
    if recipe.data.rest == "unlabelled":
        split = split.keeping_rest(whole.only(recipe.data.classes))
    if split.unlabelled and not (unlabelled or reads_unlabelled(method)):
        logger.warning(
            "%d unlabelled images are left out: %s does not learn from any", len(split.unlabelled), method.name
        )
        split = replace(split, unlabelled=())
    return split


def decodable(split: Split, recipe: Recipe, progress: bool) -> Split:
    """Return `split` without broken images, and without unlabelled images that are copies of labelled ones.

    A warning counts the items of given parts that are about an image, or of a group, of an earlier part. Raises
    AdaptError for a broken image unless the recipe skips it.
    """
    with counting_bar("checking", progress) as bar:
        split = without_broken(split, recipe.data.broken, bar)
    if leaks := [] if split.ratios else [*split.leaks()]:
        part, item, other_part, other = leaks[0]
        logger.warning(
            "%s: %d %s of val or test have an image, or a group, of an earlier part, as %r in %s (%r in %s): scores on "
            "them say little about new images",
            shown(split.name), len(leaks), split.noun, item.name, part, other.name, other_part,
        )  # fmt: skip
    if not split.unlabelled:
        return split
    with counting_bar("comparing", progress) as bar:
        return replace(split, unlabelled=without_copies(split.unlabelled, [*split.items()], bar))


def with_validation(split: Split, recipe: Recipe) -> Split:
    """Return `split`, with validation images taken from the training images if the recipe needs validation images."""
    method = recipe.new_method()
    chosen = [setting] if (setting := chosen_setting(method)) else []
    by_folds = recipe.train is None and calibrates_by_folds(method)
    chosen += ["the temperature"] * (recipe.calibrate is True and not by_folds)
    if split.val or not chosen or (recipe.train and recipe.train.holdout) or recipe.data.sampling == "clip-lora":
        return split  # the last two take validation images from those that are sampled
    carved = split.with_validation(recipe.seed)
    if carved.val:
        logger.warning(
            "%s has no validation images, but %s needs validation images to choose %s: %d of the %d training images, "
            "drawn with the seed, are used instead",
            shown(split.name), method.name, " and ".join(chosen), len(carved.val), len(split.train),
        )  # fmt: skip
    return carved


def _note_short(split: Split, shots: int, known: Collection[str]) -> None:
    """Log a warning if there are classes, other than those `known`, with fewer training images than `shots`."""
    counts = Counter(item.stratum for item in split.train)
    short = [name for name in split.class_names if counts[name] < shots and name not in known]
    if short:
        listed = ", ".join(f"{name!r} {counts[name]}" for name in short[:3]) + ", ..." * (len(short) > 3)
        classes = "1 class has" if len(short) == 1 else f"{len(short)} classes have"
        logger.warning("%s fewer than %d training images (%s): all images are used", classes, shots, listed)


def images_per_class(recipe: Recipe, split: Split) -> int:
    """Return the number of training images per class, on which the length of training may depend.

    The number is the recipe's shots if set, and otherwise the median over the classes of `split`, or, without labelled
    training images, the number of unlabelled images divided by the number of classes.
    """
    if recipe.data.shots is not None:
        return recipe.data.shots
    if not split.train:
        return max(1, len(split.unlabelled) // len(split.class_names))
    of_classes = bool(split.class_names)
    counts = Counter(name for item in split.train for name in (item.class_names if of_classes else (item.kept_with,)))
    return round(median(counts.values()))


def build(recipe: Recipe, class_names: tuple[str, ...], backbone: Backbone) -> Adapted:
    """Return a model with the recipe's method on `backbone`."""
    if recipe.data.max_pixels is not None:
        backbone = backbone.limited(recipe.data.max_pixels)
    method = recipe.new_method()
    memory = None if recipe.text_memory_gib is None else int(recipe.text_memory_gib * 2**30)
    with keeping_rng(backbone.device, recipe.seed):
        model: Adapted = wrap(
            backbone, method, class_names, recipe.fast, checkpointing=recipe.checkpointing, text_memory=memory
        )
    if recipe.start is not None:
        start_from(model, recipe.start)
    return model


def run_recipe(
    recipe: Recipe,
    out: str | Path | None,
    resume: bool = False,
    progress: bool = True,
    split: Split | None = None,
    backbone: Backbone | None = None,
    track: Track = (),
) -> Result:
    """Train according to `recipe`, in a run directory at `out` if given, and return the result.

    All inputs are checked before training. By default, `split` and `backbone` are the recipe's; a given `split` must be
    sampled and checked. `track` contains names of trackers, or trackers of your own, as in `fit`.
    """
    tracking = trackers(track, out)
    folder = folder_of(recipe.data.source) if out is not None and Path(out).is_dir() else None
    if out is not None and folder is not None and Path(out).resolve() == Path(folder).resolve():
        raise AdaptError(f"{out} is the folder of the data; expected a folder for the run: choose another --out (out=)")
    main = processes_on(chosen(recipe.device)).main
    with Run(out, recipe.to_yaml(), resume, main) if out is not None else nullcontext() as run:
        listed = listed_data(recipe) if split is None else split
        plan = plan_recipe(recipe, listed, backbone)
        if split is None and (kept := decodable(listed, recipe, progress)) is not listed:
            plan = plan_of(recipe, plan.model, listed := kept)
        if split is None and progress:
            logger.info("data       %s", shares_of(plan, listed))
        return fit_plan(plan, run, tracking, progress)


def shares_of(plan: TrainingPlan, split: Split) -> str:
    """Return how many items of the data, of which `split` is a sample, are learned, chosen on, tested and left out."""
    tested = len(plan.test_set) if plan.test_set and tasks.of(plan.test_set).scored else 0
    left = split.rows - len([*split.train, *split.val, *split.unlabelled]) - tested
    learned = f"{len(plan.train_set) + len(plan.unlabelled_set):,} items learned"
    advice = " (data.learned=all learns from all)" if split.ratios and split.test else ""
    return f"{learned}, {len(plan.val_set):,} chosen on, {tested:,} tested, {left:,} left out{advice}"


def plan_recipe(recipe: Recipe, split: Split, backbone: Backbone | None = None, **changes: object) -> TrainingPlan:
    """Return the plan of a training of a new model by `recipe` on the sampled data `split`, without opening an image.

    The backbone is the recipe's by default, and `changes` are those of `plan_of`. Raises AdaptError for an adapter to
    start from that is another method's, for a backbone that cannot do the task of the data, and as `plan_of` does.
    """
    split = with_validation(split, recipe)
    if recipe.start is not None:  # before the backbone is loaded
        check_start(recipe.start, recipe.new_method(), recipe.train is not None, split.class_names)
    backbone = backbone or load_backbone(recipe.backbone, recipe.device, recipe.quantize)
    task = tasks.of(split.items())
    task.check_backbone(backbone)  # before the method, which may need parts that only other kinds of backbones have
    model = build(recipe, task.class_names_for(backbone.kind, split.class_names), backbone)
    return plan_of(recipe, model, split, **changes)


def plan_of(recipe: Recipe, model: Adapted, split: Split, **changes: object) -> TrainingPlan:
    """Return the plan of a training of the recipe's `model` on `split`.

    `changes` replace training settings of the recipe, and None removes a setting. Raises AdaptError for every mistake
    that `fit` can detect before an image is opened.
    """
    settings = dict[str, Any]()
    if recipe.train is not None:
        images, table = images_per_class(recipe, split), recipe.train.epochs
        plain = recipe.train.at(images)
        if isinstance(table, dict) and images not in table:
            logger.info("train.epochs has no entry for %d images per class: %s epochs are used", images, plain.epochs)
        settings = plain.model_dump(exclude_unset=True, exclude_none=True)
    settings |= changes
    plan = planned(
        model,
        split.train,
        split.test,
        val_set=split.val,
        unlabelled_set=split.unlabelled if reads_unlabelled(model.method) else (),
        seed=recipe.seed,
        template=recipe.data.template,
        cache=recipe.cache,
        blend=recipe.blend,
        calibrate=recipe.calibrate,
        pooling=recipe.pooling,
        watch=recipe.watch,
        **{key: value for key, value in settings.items() if value is not None},
    )
    return replace(plan, recipe=recipe.model_dump(mode="json"))
