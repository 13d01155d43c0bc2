"""`fit(model, train_set, test_set)`: train a wrapped model, measure it, and save its adapter."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Unpack, cast

import torch
import yaml
from pydantic import ValidationError

from adapt import tasks
from adapt.backbones.base import outside_inference_mode
from adapt.common.devices import described, keeping_rng
from adapt.common.disk import write_csv
from adapt.common.errors import AdaptError
from adapt.common.progress import LogEntry, training_bar
from adapt.common.validation import explain
from adapt.data.bags import BagPooling, has_bags, singles
from adapt.data.check import without_copies
from adapt.data.item import Item, items_id
from adapt.data.split import are_turned
from adapt.evaluation.evaluate import keep_examples
from adapt.methods.base import Method
from adapt.methods.base.traits import PoolsBags, chosen_setting, has_trait, needs_labels, reads_unlabelled
from adapt.models.base import Adapted, is_native
from adapt.models.classifier import AdaptedModel
from adapt.models.features import keeps_features, of_texts
from adapt.models.image_model import ImageModel
from adapt.models.together import can_answer_together
from adapt.recipe.settings import FitSettings, TrainSettings
from adapt.tracking import Track, Tracker, trackers
from adapt.training.average import epoch_weights
from adapt.training.baseline import baseline_of, check_learned, constant, note_harm, zero_shot
from adapt.training.choice import choose
from adapt.training.fitting import Fitting
from adapt.training.journal import Journal
from adapt.training.length_of_time import LengthOfTime
from adapt.training.loop import Length, Trainer, precision_on
from adapt.training.processes import dividing, processes_on
from adapt.training.result import Result, reproducible
from adapt.training.run import Run
from adapt.training.step_memory import check_memory
from adapt.training.temperature import answers_by_folds, calibrated, calibrates

logger = logging.getLogger("adapt")


def fit(
    model: Adapted,
    train_set: Sequence[Item],
    test_set: Sequence[Item] = (),
    *,
    val_set: Sequence[Item] = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    track: Track = (),
    **settings: Unpack[FitSettings],
) -> Result:
    """Train `model` in place on labelled images, and compare the model with its zero-shot baseline on `test_set`.

    `settings` are the fields of `TrainSettings` (epochs or iterations, lr, batch_size, ...), which a method without
    gradient steps does not accept, and the following settings:

    * `seed`, by default 1, and `cache`, which is on by default and stores image features on disk.
    * `template`: the prompt of the zero-shot baseline, by default "a photo of a {}.".
    * `blend`: the weight of the adapted model in the answers; zero-shot answers have the remaining weight (WiSE-FT).
    * `unlabelled_set`: images without labels, for a method that learns from such images; copies of labelled images are
      left out. A method that reads no labels learns from `unlabelled_set` and `train_set`, which may be empty.
    * `pooling`: what is averaged over the images of an item that has several, `features` or `logits`. With `logits`,
      each image is learned and answered by itself.
    * `calibrate`: divide the logits by a temperature, so that confidence matches accuracy. A method without gradient
      steps chooses it by cross-validation, and is calibrated by default; other methods choose it on `val_set`.

    Settings of the method that are tuned on the data are chosen on `val_set`, or by cross-validation if `val_set` is
    empty; the choice of blocks to skip needs a `val_set`. A later call of `fit` keeps the chosen values.

    `out` is a new run directory, or an existing run directory to continue with `resume`. A run directory contains the
    adapter, metrics, log and checkpoints. Photographs are rotated upright by EXIF if the items request the rotation, as
    items from `adapt.data.load` on your own folders do, and the adapter records the rotation. `track` contains names of
    trackers that follow the run (tensorboard, wandb, mlflow), or trackers of your own.

    Under `accelerate launch` or torchrun, the processes train one model together, and each process has a fraction of
    every batch. Only the main process evaluates the model and writes files, so the results of other processes
    contain neither scores nor an adapter.

    Raises AdaptError for invalid settings, a tracker whose extra is not installed, labels that the model does not have,
    images that cannot be decoded, a training step that does not fit into memory, or a loss that is not finite. Raises
    KeyboardInterrupt if the user stops the training.
    """
    unlabelled = settings.get("unlabelled_set") or ()
    _check_arguments(model, train_set=train_set, test_set=test_set, val_set=val_set, unlabelled_set=unlabelled)
    tracking = trackers(track, out)
    if unlabelled:
        settings["unlabelled_set"] = without_copies(unlabelled, [*train_set, *val_set, *test_set])
    training = checked(model, train_set, test_set, val_set=val_set, **settings)
    with _directory(out, training, resume) as run:
        return train(training, run, tracking, progress)


def _check_arguments(model: object, **sets: object) -> None:
    """Raise AdaptError if `model` is not an adapted model, or if one of the `sets` is not a sequence of items."""
    if not isinstance(model, Adapted):
        raise AdaptError(f"model is a {type(model).__name__}; expected what adapt.wrap(backbone, method) returns")
    for name, items in sets.items():
        listed = isinstance(items, Sequence) and not isinstance(items, str)
        others = [each for each in cast("Sequence[object]", items) if not isinstance(each, Item)] if listed else [items]
        if others:
            called = f"{'an element of ' * listed}{name} is a {type(others[0]).__name__}"
            raise AdaptError(f"{called}; expected items, such as those of adapt.data.load(DATA).train")


def checked(
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
    **settings: Any,
) -> Fitting:
    """Return a checked `Fitting` that is ready for training, from the arguments of `fit`.

    Raises AdaptError for every mistake that `fit` can detect before an image is opened.
    """
    if not 0 <= seed < 2**63:
        raise AdaptError(f"seed is {seed}; expected a whole number from 0 to 2^63 - 1")
    model.turn(are_turned(chain(train_set, val_set, test_set)))
    chosen = _settings(model, settings, cache)
    model.answers = replace(model.answers, pooling=pooling)
    if pooling == "logits":
        train_set = singles(train_set)
    _check_parts(model, train_set, val_set, test_set)
    train_set, unlabelled_set = _learned_from(model.method, train_set, unlabelled_set)
    if blend is not None:
        model.answers = model.blended(blend, template).answers
    processes = dividing(processes_on(model.backbone.device), model, train_set, chosen, cache)
    return Fitting(
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


def _directory(out: str | Path | None, training: Fitting, resume: bool) -> AbstractContextManager[Run | None]:
    """Return a context manager that yields the run in the directory `out`, or None if `out` is None."""
    if out is None and resume:
        raise AdaptError(
            "resume continues a run in a directory, but no directory is given: give a directory, or omit resume"
        )
    if out is None:
        return nullcontext()
    return Run(out, yaml.safe_dump(training.origin, sort_keys=False), resume, training.processes.main)


def train(training: Fitting, run: Run | None, tracking: Sequence[Tracker] = (), progress: bool = False) -> Result:
    """Train and evaluate the model, save the adapter in the run directory if there is one, and return the result.

    Raises the errors of `fit` that can occur after its initial checks.
    """
    model, processes = training.model, training.processes
    training.run, training.progress = run, progress and processes.main
    if run is not None:
        run.images = training.train_id
    if isinstance(model, AdaptedModel):
        memory = model.text_memory if run is None else run.text_memory(model.text_memory)
        model.text_memory = processes.agreed(memory)
    watched = Journal(tracking if processes.main else (), run, model.method.name, training.origin)
    with outside_inference_mode(), torch.enable_grad(), watched as journal, model.backbone.unchanging():
        return _train_and_measure(training, journal)


def _train_and_measure(training: Fitting, journal: Journal) -> Result:
    model, run, seed, processes = training.model, training.run, training.seed, training.processes
    test_set = training.test_set if training.test_set and tasks.of(training.test_set).scored else ()
    metrics: dict[str, object] = {"method": model.method.name, "backbone": model.backbone.name, "seed": seed}
    metrics["device"] = described(model.backbone.device)
    if test_set and (one := tasks.of(test_set).nothing_to_learn((), model.class_names)):
        metrics["not_measured"], test_set = one, ()  # each answer would be right
    if training.processes.count > 1:
        metrics["processes"] = training.processes.count
    # a temperature is that of an earlier training; only multi-label data has a bias, which its task fits
    model.answers = replace(model.answers, temperature=1.0, logit_bias=None)
    if (figures := constant(training, test_set)) is not None:
        metrics |= figures
    elif model.has_baseline:
        baseline = baseline_of(training)
        tasks.of(training.train_set).fit_answers(baseline, training.train_set, training.inference(), model)
        baseline.answers, model.answers = processes.agreed((baseline.answers, model.answers))
        if test_set and training.processes.main:
            metrics["baseline"] = model.baseline
            metrics["zero_shot"] = zero_shot(training, baseline)
    metrics |= _learn(training, journal)
    metrics["trainable_parameters"] = sum(parameter.numel() for parameter in model.method.parameters())
    metrics["train_images"] = len(training.train_set)
    if training.unlabelled_set:
        metrics["unlabelled_images"] = len(training.unlabelled_set)
    metrics["train_set"] = training.train_id
    if test_set:
        metrics["test_set"] = items_id(test_set)
    model.eval()
    if not training.processes.main:  # the main process measures and writes
        return Result(metrics, journal.history, None)
    if model.answers.blend < 1:
        metrics["blend"] = model.answers.blend
    scores = training.score(model, test_set, "evaluating") if test_set else None
    if training.calibrate and (training.val_set or training.held_back_answers):
        metrics["calibration"] = calibrated(training, scores)
        scores = training.score(model, test_set, "evaluating") if test_set else None
    if training.val_set and tasks.of(training.val_set).validates(model):
        metrics["val"] = training.score(model, training.val_set, "validating").figures()
    if scores is not None:
        metrics["adapted"] = scores.figures()
        if can_answer_together(model, test_set):
            metrics["together"] = training.score(model, test_set, "answering together", together=True).figures()
        if has_bags(test_set):
            metrics["by_image"] = training.score(model, singles(test_set), "each image").figures()
        note_harm(metrics, journal.history)
    model.metadata = {"recipe": training.recipe, "seed": seed, "metrics": reproducible(metrics)}
    if scores is not None:
        metrics["summary"] = scores.summary()
    adapter = None
    if run is not None:
        adapter = model.save(run.adapter)
        write_csv(run.picks, _picks(training.train_set))
        if scores is not None:  # details grow with images and classes: not for the adapter's header
            write_csv(run.predictions, scores.rows())
            keep_examples(model, scores, run.explanations)
            metrics["adapted"] = scores.figures() | scores.details()
        metrics["adapter_bytes"] = adapter.stat().st_size
        run.finish(metrics)
    journal.finished(metrics)
    return Result(metrics, journal.history, adapter)


def _picks(items: Sequence[Item]) -> list[dict[str, str]]:
    """Return the rows of train_images.csv, each with an item's path, class, further label columns and text.

    If some items have several images, there is a row for each image, with the number of the item.
    """
    bags, rows = has_bags(items), []
    for number, item in enumerate(items, 1):
        about = {"class": item.answer} | item.label.columns | ({"text": item.text} if item.text else {})
        about |= {"item": str(number)} if bags else {}
        rows += [{"path": path} | about for path in (item.paths if bags else [item.path])]
    return rows


def _settings(model: Adapted, settings: dict[str, Any], cache: bool) -> TrainSettings | None:
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
    _check_vision(model, chosen)
    _check_weights(model, chosen)
    if chosen.group_by_length and not is_native(model):
        raise AdaptError(
            f"train.group_by_length is for conversations, but {model.backbone.describe()} is a {model.backbone.kind}, "
            "whose inputs are of one length: leave out train.group_by_length"
        )
    through_towers = bool(model.method.touches) or not keeps_features(model, cache)
    precision = precision_on(model.backbone.device, chosen.precision, through_towers)
    return chosen.model_copy(update={"precision": precision})


def _check_vision(model: Adapted, settings: TrainSettings) -> None:
    """Raise AdaptError if the loss has the term `distill`, but the method does not edit a vision tower."""
    edited = isinstance(model, ImageModel) and "vision" in model.method.touches
    if settings.terms.get("distill") and not edited:
        raise AdaptError(
            f"train.terms has distill: {settings.terms['distill']:g}, but {model.method.name} on "
            f"{model.backbone.describe()} does not change image features, so that distill has no effect: leave out "
            "distill"
        )


def _check_weights(model: Adapted, settings: TrainSettings) -> None:
    """Raise AdaptError if class weights are set, but there are no classes or the loss does not use class weights."""
    if settings.class_weights == "equal":
        return
    if not isinstance(model, ImageModel) or not model.class_names:
        raise AdaptError("train.class_weights needs classes, but the data has no classes: omit train.class_weights")
    if not model.method.weighs_classes:
        raise AdaptError(
            f"train.class_weights needs a cross-entropy over classes, but the loss of {model.method.name} has no such "
            "term: leave out train.class_weights"
        )


def _learn(training: Fitting, journal: Journal) -> dict[str, object]:
    """Train the method, and return entries about the training for metrics.json."""
    method = training.model.method
    if training.chosen is None:
        started = time.monotonic()
        with keeping_rng(training.model.backbone.device, training.seed):
            choose(training)
            if training.calibrate and not training.val_set:
                training.held_back_answers = answers_by_folds(training)
            training.prepare()
            method.finish(training)
        return {"seconds": round(time.monotonic() - started, 3), **training.noted}
    if not training.val_set:
        choose(training)
    figures = _steps(training, journal)
    training.model.eval()  # what is chosen and measured now concerns answers
    if training.val_set:  # after training, as published
        choose(training, learned=True)
    method.finish(training)
    return training.noted | figures


def _steps(training: Fitting, journal: Journal) -> dict[str, object]:
    """Take all gradient steps, and return entries for metrics.json, such as the duration and the final loss."""
    model, settings = training.model, training.settings
    needed = check_memory(model, training.batches, settings, training.processes.count)
    if settings.average is not None:  # fail before a search takes its time
        epoch_weights(settings.average, Length.of(settings, len(training.batches)).epochs)
    with keeping_rng(model.backbone.device, training.seed):
        training.weigh_classes()
        training.prepare()
        training.processes.begin_alike(model.method)
        training.renew_batches()
        tasks.of(training.train_set).prepare(training)
        trainer = Trainer(
            model, training.batches, settings, training.run, saved=journal.saved, processes=training.processes
        )
        journal.go_on(trainer.position.step)
        if not trainer.resumed:
            trainer.position.seconds = training.seconds
        with training_bar(trainer.plan.steps, trainer.position.step, training.progress) as report:
            time_left = LengthOfTime(model, training.batches, settings, trainer.plan.steps, trainer.position.step)

            def step_done(entry: LogEntry) -> None:
                journal.step(entry)
                report(entry)
                time_left.step_done()

            position = trainer.train(step_done, model.method.epoch_done)
    training.seconds = position.seconds
    return {
        "seconds": round(position.seconds, 3),
        "steps": position.step,
        # None in a process other than the main one, if no step was left after a resume
        "final_loss": journal.history[-1]["loss"] if journal.history else None,
        "precision": settings.precision,
        "text_path": model.text_path,
        "vision_path": model.vision_path,
        "estimated_bytes": needed,
    }
