"""`fit(model, train_set, test_set)`: trains a wrapped model, measures it, and leaves an adapter."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from adapt.data.split import Item, items_id
from adapt.disk import write_csv
from adapt.errors import AdaptError
from adapt.evaluation.calibration import BOUNDS, temperature
from adapt.evaluation.evaluate import check_labels, evaluate
from adapt.evaluation.examples import keep_examples
from adapt.evaluation.scores import Scores
from adapt.features import keeps_features, of_texts
from adapt.methods.zero_shot import ZeroShot
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.models.wrap import wrap
from adapt.progress import counting_bar, training_bar
from adapt.training.average import epoch_weights
from adapt.training.fitting import Fitting
from adapt.training.length_of_time import LengthOfTime
from adapt.training.loop import Length, Trainer
from adapt.training.result import Result
from adapt.training.run import Run
from adapt.training.settings import TrainSettings
from adapt.training.step_memory import check_memory
from adapt.validation import explain

logger = logging.getLogger("adapt")
FEW = 50  # validation images, on which a temperature is a guess


def fit(
    model: Adapted[Any],
    train_set: Sequence[Item],
    test_set: Sequence[Item] = (),
    *,
    val_set: Sequence[Item] = (),
    template: str = "a photo of a {}.",
    seed: int = 1,
    out: str | Path | Run | None = None,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    cache: bool = True,
    progress: bool = True,
    blend: float | None = None,
    calibrate: bool = False,
    **settings: Any,
) -> Result:
    """Trains `model` in place on labelled images and compares it with zero-shot classification on `test_set`.

    `settings` are those of `TrainSettings` (epochs or iterations, lr, batch_size, ...); methods that a solver fits, or
    that nothing trains, take none. `val_set` is used by such a solver, and by a search of blocks. `out` is a run
    directory to make (or to go on with, by `resume`): it gets the adapter, metrics, log and checkpoints. `recipe` is
    what the adapter records as its origin. Of the answers `blend` is the share of the adapted model, the rest being
    zero-shot by `template` (WiSE-FT), and `calibrate` divides their logits by a temperature, chosen on `val_set`.

    Raises AdaptError for bad settings, labels that are not the model's, images that cannot be decoded, a step that does
    not fit into memory, or a loss that is not finite; KeyboardInterrupt when the user stops it.
    """
    if not 0 <= seed < 2**63:
        raise AdaptError(f"seed is {seed}; expected a whole number from 0 to 2^63 - 1")
    chosen = _settings(model, settings)
    _check_parts(model, train_set, val_set, test_set)
    if blend is not None:
        model.answers = model.blended(blend, template).answers
    if calibrate:
        _check_calibration(model, val_set)
    method = {"name": model.method.name, **model.method.config.model_dump(mode="json")}
    origin = recipe or {"method": method, "classes": list(model.class_names), "train": settings, "seed": seed}
    with _directory(out, origin, resume) as run:
        if run is not None:
            run.images = items_id(train_set)
            if isinstance(model, AdaptedModel):
                model.text_memory = run.text_memory(model.text_memory)
        training = Fitting(model, train_set, val_set, chosen, seed, run, cache, progress)
        return _fit(training, test_set, template, recipe, calibrate)


def _check_parts(
    model: Adapted[Any], train_set: Sequence[Item], val_set: Sequence[Item], test_set: Sequence[Item]
) -> None:
    """Refuses what these images make impossible, before any of them is encoded."""
    check_labels(model, train_set)
    for part in (val_set, test_set):
        if part:
            check_labels(model, part)
    if of_texts(train_set) and not (model.method.of_texts_alone or keeps_features(model, cache=True)):
        raise AdaptError(
            f"the data has texts in the place of training images, and {model.method.name} on "
            f"{model.backbone.describe()} learns from images: take a method that leaves the vision tower alone, such "
            "as close"
        )
    method, needed = model.method, model.method.chosen_on_validation
    if method.of_targets and train_set[0].target is None:
        raise AdaptError(f"{method.name} learns numbers, and the data has none: give a .csv with a column target")
    if needed is not None and not val_set:
        raise AdaptError(
            f"{method.name} chooses {needed} on validation images, and there are none: give some, or set "
            f"method.{needed}"
        )
    if train_set[0].is_pair:
        return
    unlearnt = sorted(set(model.class_names) - {item.class_name for item in train_set})
    if method.needs_every_class and unlearnt:
        raise AdaptError(f"{method.name} needs an image of every class; there is none of {unlearnt[0]!r}")


def _directory(
    out: str | Path | Run | None, origin: dict[str, Any], resume: bool
) -> AbstractContextManager[Run | None]:
    """A run directory to enter; one that the caller has entered, or none, is passed through."""
    if out is None and resume:
        raise AdaptError(
            "resume goes on with the run in a directory, and none is given: name it by out, or leave resume out"
        )
    if out is None or isinstance(out, Run):
        return nullcontext(out)
    return Run(out, yaml.safe_dump(origin, sort_keys=False), resume)


def _check_calibration(model: Adapted[Any], val_set: Sequence[Item]) -> None:
    if not model.class_names:
        raise AdaptError(f"{model.backbone.describe()} tells no classes apart here: leave calibrate out")
    if not val_set:
        raise AdaptError("calibrate chooses a temperature on validation images, and there are none: give some")


def _fit(
    training: Fitting, test_set: Sequence[Item], template: str, recipe: dict[str, Any] | None, calibrate: bool
) -> Result:
    model, run, seed = training.model, training.run, training.seed
    metrics: dict[str, Any] = {"method": model.method.name, "backbone": model.backbone.name, "seed": seed}
    if test_set and model.has_baseline:
        metrics["baseline"] = model.baseline
        metrics["zero_shot"] = _zero_shot(training, test_set, template)
    history, trained = _train(training)
    metrics |= trained
    metrics["trainable_parameters"] = sum(parameter.numel() for parameter in model.method.parameters())
    metrics["train_images"] = len(training.train_set)
    metrics["train_set"] = items_id(training.train_set)
    model.eval()
    if model.answers.blend < 1:
        metrics["blend"] = model.answers.blend
    scores = _scores(training, test_set, "evaluating") if test_set else None
    if calibrate:
        metrics["calibration"] = _calibrated(training, scores)
        scores = _scores(training, test_set, "evaluating") if test_set else None
    if training.val_set and (model.class_names or training.val_set[0].is_pair):
        metrics["val"] = _scores(training, training.val_set, "validating").figures()
    if scores is not None:
        metrics["adapted"] = scores.figures()
        _note_harm(metrics, history)
    model.metadata = {"recipe": recipe, "seed": seed, "metrics": dict(metrics)}
    adapter = None
    if run is not None:
        adapter = model.save(run.adapter)
        write_csv(run.picks, [_pick(item) for item in training.train_set])
        if scores is not None:  # what grows with images and classes stays out of the adapter's header
            write_csv(run.predictions, scores.rows())
            keep_examples(model, scores, run.explanations)
            metrics["adapted"] = scores.figures() | {"by_class": scores.by_class}
        metrics["adapter_bytes"] = adapter.stat().st_size
        run.finish(metrics)
    return Result(metrics, history, adapter)


def _scores(training: Fitting, items: Sequence[Item], title: str) -> Scores:
    with counting_bar(title, training.progress) as bar:
        return evaluate(training.model, items, workers=training.workers, cache=training.cache, progress=bar)


def _calibrated(training: Fitting, before: Scores | None) -> dict[str, Any]:
    """Sets the model's temperature; `before` are its scores on the test images without one."""
    model, items = training.model, training.val_set
    chosen = temperature(model, items, workers=training.workers, cache=training.cache)
    if len(items) < FEW or chosen in BOUNDS:
        logger.warning(
            "the temperature, %.3g, was chosen on %d validation images: on so few, or at a bound, answers may be "
            "further from being as sure as they are right. Compare the errors before and after, and give more images",
            chosen, len(items),
        )  # fmt: skip
    model.answers = replace(model.answers, temperature=chosen)
    found: dict[str, Any] = {"temperature": chosen, "val_images": len(items)}
    return (
        found if before is None else found | {"error_before": before.calibration_error, "before": before.reliability()}
    )


def _note_harm(metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Says where training made the backbone worse, and what to try."""
    before, after = metrics.get("zero_shot", {}).get("accuracy", 0.0), metrics["adapted"]["accuracy"]
    if after >= before:
        return
    last = history[-len(history) // 10 :]  # the last tenth of the steps
    fitted = sum(entry["accuracy"] for entry in last) / len(last) if last else None
    if fitted is None:
        advice = "Try other settings of the method, or more shots"
    elif fitted > 0.6:
        advice = f"It fits its training images, {100 * fitted:.1f} % right at the end: try fewer epochs, a lower "
        advice += "train.lr or more shots"
    else:
        advice = f"It does not fit its training images yet, {100 * fitted:.1f} % right at the end: try more epochs or "
        advice += "another train.lr"
    logger.warning(
        "adapted accuracy, %.1f %%, is below the %.1f %% of %s. %s, and compare on validation images",
        100 * after, 100 * before, metrics["baseline"], advice,
    )  # fmt: skip


def _pick(item: Item) -> dict[str, str]:
    beside = {"question": item.question, "text": item.text}
    return {"path": item.path, "class": item.class_name} | {key: value for key, value in beside.items() if value}


def _settings(model: Adapted[Any], settings: dict[str, Any]) -> TrainSettings | None:
    """The checked settings; None for a method that takes no gradient steps."""
    if not model.method.takes_steps:
        if settings:
            raise AdaptError(f"{model.method.name} is not trained by steps: leave out {', '.join(sorted(settings))}")
        return None
    try:
        chosen = TrainSettings(**settings).at(None)
    except ValidationError as error:
        raise AdaptError(explain(TrainSettings, error, "fit")) from None
    _check_vision(model, chosen)
    return chosen


def _check_vision(model: Adapted[Any], settings: TrainSettings) -> None:
    """AdaptError for settings about an edited vision tower where there is none."""
    edited = isinstance(model, AdaptedModel) and "vision" in model.method.touches
    if settings.terms.get("distill") and not edited:
        raise AdaptError(
            f"train.terms has distill: {settings.terms['distill']:g}, and {model.method.name} on "
            f"{model.backbone.describe()} changes no image features that could be held to the backbone's own: leave it "
            "out"
        )


def _zero_shot(training: Fitting, test_set: Sequence[Item], template: str) -> dict[str, Any]:
    """The backbone by itself: by hand-written prompts, by its own head, or as a language model that sees no image."""
    model, options = training.model, dict[str, Any]()
    if isinstance(model, AdaptedModel):
        options = {"fast": model.fast, "text_memory": model.text_memory}
    baseline = wrap(model.backbone, ZeroShot(template), model.class_names, **options)
    with counting_bar(model.baseline, training.progress) as bar:
        scores = evaluate(baseline, test_set, workers=training.workers, cache=training.cache, progress=bar)
    return scores.figures() | ({"template": template} if options else {})


def _train(training: Fitting) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The history of steps, and what training adds to the metrics."""
    method = training.model.method
    if training.chosen is None:
        started = time.monotonic()
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            method.prepare(training)
            method.finish(training)
        return [], {"seconds": round(time.monotonic() - started, 3), **training.noted}
    history, figures = _steps(training)
    method.finish(training)
    return history, training.noted | figures


def _steps(training: Fitting) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    model, run, settings = training.model, training.run, training.settings
    needed = check_memory(model, training.batches, settings)
    if settings.average is not None:  # before a search takes its time
        epoch_weights(settings.average, Length.of(settings, len(training.batches)).epochs)
    history: list[dict[str, Any]] = []
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        training.weigh_classes()
        model.method.prepare(training)
        training.renew_batches()
        trainer = Trainer(model, training.batches, settings, run)
        if not trainer.resumed:
            trainer.position.seconds = training.seconds
        with training_bar(trainer.plan.steps, trainer.position.step, training.progress) as report:
            time_left = LengthOfTime(model, training.batches, settings, trainer.plan.steps, trainer.position.step)

            def told(entry: dict[str, Any]) -> None:
                history.append(entry)
                report(entry)
                time_left.told()

            position = trainer.train(told, model.method.epoch_done)
    training.seconds = position.seconds
    if run is not None:  # a resumed run's whole history
        history = run.history()
    return history, {
        "seconds": round(position.seconds, 3),
        "steps": position.step,
        "final_loss": history[-1]["loss"],
        "text_path": model.text_path,
        "vision_path": model.vision_path,
        "estimated_bytes": needed,
    }
