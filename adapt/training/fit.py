"""`fit(model, train_set, test_set)`: train a wrapped model, measure it, and save its adapter."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Unpack, cast

import torch
import yaml

from adapt import tasks
from adapt.backbones.base import outside_inference_mode
from adapt.common import plain
from adapt.common.devices import described, keeping_rng
from adapt.common.disk import write_csv
from adapt.common.errors import AdaptError
from adapt.common.progress import LogEntry, counting_bar, readable_time, training_bar
from adapt.data.bags import has_bags
from adapt.data.check import without_copies
from adapt.data.decoding.files import file_id
from adapt.data.item import Item, items_id
from adapt.evaluation.evaluate import evaluate, keep_examples
from adapt.formats.adapter import NAME
from adapt.formats.tensor_file import checksum
from adapt.models.base import Adapted, is_native
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.features import keeps_features
from adapt.models.image_model import ImageModel
from adapt.recipe.settings import FitSettings, TrainSettings
from adapt.tracking import Track, Tracker, trackers
from adapt.training import measures
from adapt.training.batches import Batches, KnownBatches
from adapt.training.choice import choose
from adapt.training.fitting import Fitting
from adapt.training.loop import Length, Trainer, epoch_weights
from adapt.training.plan import TrainingPlan, planned
from adapt.training.result import Result, reproducible
from adapt.training.run import PICKS, SEEN, Journal, Run, seen_images
from adapt.training.step_memory import check_memory

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
    * `watch`: keep what the training images look like to the frozen backbone (at most 32 KB), so that later images
      that look otherwise are noticed.

    Settings of the method that are tuned on the data are chosen on `val_set`, or by cross-validation if `val_set` is
    empty; the choice of blocks to skip needs a `val_set`. A later call of `fit` keeps the chosen values. `keep="best"`
    keeps the epoch that is best on `val_set`, or on the share `holdout` of the training items.

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
    plan = planned(model, train_set, test_set, val_set=val_set, **settings)
    if out is None and resume:
        raise AdaptError(
            "resume continues a run in a directory, but no directory is given: give a directory, or omit resume"
        )
    origin = yaml.safe_dump(plan.origin, sort_keys=False)
    with nullcontext() if out is None else Run(out, origin, resume, plan.processes.main) as run:
        return fit_plan(plan, run, tracking, progress)


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


def fit_plan(plan: TrainingPlan, run: Run | None, tracking: Sequence[Tracker] = (), progress: bool = False) -> Result:
    """Train and evaluate the model, save the adapter in the run directory if there is one, and return the result.

    Raises the errors of `fit` that can occur after its initial checks.
    """
    model, processes = plan.model, plan.processes
    training = Fitting(plan, run, progress and processes.main)
    if run is not None:
        learned = plan.train_id, [item.class_names for item in plan.train_set], model.class_names
        run.data = plain.dump([*learned, checksum(model.method.state_dict(), {}) if model.started else ""])
    if isinstance(model, AdaptedModel):
        memory = model.text_memory if run is None else run.text_memory(model.text_memory)
        model.text_memory = processes.agreed(memory)
    watched = Journal(tracking if processes.main else (), run, model.method.name, plan.origin)
    with outside_inference_mode(), torch.enable_grad(), watched as journal, model.backbone.unchanging():
        return _train_and_measure(training, journal)


def _train_and_measure(training: Fitting, journal: Journal) -> Result:
    plan, model, run = training.plan, training.model, training.run
    test_set = plan.test_set if plan.test_set and tasks.of(plan.test_set).scored else ()
    metrics: dict[str, object] = {"method": model.method.name, "backbone": model.backbone.name, "seed": plan.seed}
    metrics["device"] = described(model.backbone.device)
    if test_set and (one := tasks.of(test_set).nothing_to_learn((), model.class_names)):
        metrics["not_measured"], test_set = one, ()  # each answer would be right
    if plan.processes.count > 1:
        metrics["processes"] = plan.processes.count
    metrics |= measures.before(training, test_set)
    metrics |= _learn(training, journal)
    metrics["trainable_parameters"] = sum(parameter.numel() for parameter in model.method.parameters())
    metrics["train_images"] = len(plan.train_set)
    if plan.unlabelled_set:
        metrics["unlabelled_images"] = len(plan.unlabelled_set)
    metrics["train_set"] = plan.train_id
    if test_set:
        metrics["test_set"] = items_id(test_set)
    model.eval()
    if not plan.processes.main:  # the main process measures and writes
        return Result(metrics, journal.history, None)
    figures, scores = measures.after(training, test_set)
    metrics |= figures
    if scores is not None:
        measures.note_harm(metrics, journal.history)
    model.watch = None  # that of an earlier training
    if plan.watch:
        from adapt.evaluation.watching import watch_of

        with counting_bar("looking", training.progress) as bar:
            model.watch = watch_of(model, plan.train_set, training.inference(bar))
    model.metadata = {"recipe": plan.recipe, "seed": plan.seed, "metrics": reproducible(metrics)}
    if scores is not None:
        metrics["summary"] = scores.summary()
    adapter = None
    if run is not None:
        adapter = model.save(run.path / NAME)
        write_csv(run.path / PICKS, pick_rows(plan.train_set))
        if seen := seen_rows(plan):  # none of texts
            write_csv(run.path / SEEN, seen)
        if scores is not None:  # details grow with images and classes: not for the adapter's header
            write_csv(run.path / "predictions.csv", scores.rows())
            keep_examples(model, scores, run.path / "explanations.json")
            metrics["adapted"] = scores.reported() | scores.details()
        metrics["adapter_bytes"] = adapter.stat().st_size
        run.finish(metrics)
    journal.finished(metrics)
    return Result(metrics, journal.history, adapter)


def seen_rows(plan: TrainingPlan) -> list[dict[str, str]]:
    """Return the rows of seen_images.csv, by which images that played a part in the training are known again.

    Those of the adapter that the training started from are among them; without its list, a row has no image.
    """
    parts = {"train": plan.train_set, "val": plan.val_set, "unlabelled": plan.unlabelled_set}
    rows = [
        {"image": file_id(path), "part": part, "path": path}
        for part, items in parts.items()
        for item in items
        for path in item.paths
    ]
    if not plan.model.started:
        return rows
    before = seen_images((plan.recipe or {}).get("start"))
    return rows + [{"image": image, "part": "start", "path": ""} for image in sorted(before or {""})]


def pick_rows(items: Sequence[Item]) -> list[dict[str, str]]:
    """Return the rows of train_images.csv, each with an item's path, class, further label columns and text.

    If some items have several images, there is a row for each image, with the number of the item.
    """
    bags, rows = has_bags(items), []
    for number, item in enumerate(items, 1):
        about = {"class": item.answer} | item.label.columns | ({"text": item.text} if item.text else {})
        about |= {"item": str(number)} if bags else {}
        rows += [{"path": path} | about for path in (item.paths if bags else [item.path])]
    return rows


def _learn(training: Fitting, journal: Journal) -> dict[str, object]:
    """Train the method, and return entries about the training for metrics.json."""
    method = training.model.method
    if training.plan.chosen is None:
        started = time.monotonic()
        with keeping_rng(training.model.backbone.device, training.seed):
            choose(training)
            if training.plan.calibrate and not training.plan.val_set:
                training.held_back_answers = measures.answers_by_folds(training)
            training.prepare()
            method.finish(training)
        return {"seconds": round(time.monotonic() - started, 3), **training.noted}
    if not training.plan.val_set:
        choose(training)
    figures = _steps(training, journal)
    training.model.eval()  # what is chosen and measured now concerns answers
    if training.plan.val_set:  # after training, as published
        choose(training, learned=True)
    method.finish(training)
    return training.noted | figures


def _steps(training: Fitting, journal: Journal) -> dict[str, object]:
    """Take all gradient steps, and return entries for metrics.json, such as the duration and the final loss."""
    model, settings, plan = training.model, training.settings, training.plan
    needed = check_memory(model, training.batches, settings, plan.processes.count)
    if settings.average is not None:  # fail before a search takes its time
        epoch_weights(settings.average, Length.of(settings, len(training.batches)).epochs)
    with keeping_rng(model.backbone.device, training.seed):
        training.prepare()
        plan.processes.begin_alike(model.method)
        block = training.batches.block if isinstance(training.batches, KnownBatches) else None
        if block and isinstance(model, ImageModel) and model.unedited_blocks < block:
            del training.batches  # of inputs of this block, where the prepared method edits an earlier one
        tasks.of(plan.train_set).prepare(training)
        score = partial(evaluate, model, plan.val_set, workers=plan.workers, cache=plan.cache)
        trainer = Trainer(
            model, training.batches, settings, training.run, saved=journal.saved, processes=plan.processes, score=score
        )
        journal.go_on(trainer.position.step)
        if not trainer.resumed:
            trainer.position.seconds = training.seconds
        with training_bar(trainer.length.steps, trainer.position.step, training.progress) as report:
            time_left = LengthOfTime(model, training.batches, settings, trainer.length.steps, trainer.position.step)

            def step_done(entry: LogEntry) -> None:
                journal.step(entry)
                report(entry)
                time_left.step_done()

            position = trainer.train(step_done, model.method.epoch_done)
    training.seconds = position.seconds
    for entry in journal.history:
        if "val" in entry and entry["epoch"] == position.kept:
            [(figure, value)] = entry["val"].items()
            training.note(kept={"epoch": position.kept + 1, "of": position.epoch, "figure": figure, "value": value})
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


LONG = 600.0  # seconds of training that deserve a warning
_WARM, _TIMED = 2, 3  # number of slow first steps, and of the steps that are timed after them


class LengthOfTime:
    """A timer that warns after a few steps if training will take long, with advice on how to shorten the training."""

    def __init__(self, model: Adapted, batches: Batches, settings: TrainSettings, steps: int, done: int) -> None:
        self._left, self._advice = steps - done, _shorter(model, batches, settings)
        self._started, self._seen = time.monotonic(), 0

    def step_done(self) -> None:
        """Count a finished step; after a few timed steps, log a warning if the remaining training will take long."""
        self._seen += 1
        if self._seen == _WARM:
            self._started = time.monotonic()
        if self._seen != _WARM + _TIMED:
            return
        each = (time.monotonic() - self._started) / _TIMED
        seconds = each * (self._left - self._seen)
        if seconds > LONG:
            logger.warning(
                "%s steps are left at %.2g s each, about %s in total: to shorten the training, try %s",
                f"{self._left - self._seen:,}", each, readable_time(seconds), self._advice,
            )  # fmt: skip


def _shorter(model: Adapted, batches: Batches, settings: TrainSettings) -> str:
    unit = "iterations" if settings.iterations else "epochs"
    advice = [f"--set train.{unit}={max(1, (settings.iterations or settings.epochs) // 10)}"]  # type: ignore[operator]
    if isinstance(batches, KnownBatches) and batches.block is None and not is_native(model):  # of features
        return advice[0]
    if keeps_features(model, cache=True) and settings.views is None:
        advice.append("--set train.views=10 (encodes ten views of each image once)")
    return ", ".join([*advice, "fewer --shots, or a smaller --backbone"])
