"""What a training is compared with, the backbone by itself, and in which kind both answer: one class, or several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adapt import methods
from adapt.data.split import Item, of_several
from adapt.errors import AdaptError
from adapt.evaluation.evaluate import evaluate, prior_biases
from adapt.evaluation.scores import SHORT, main_figure
from adapt.methods.base import Method
from adapt.methods.zero_shot import ZeroShot
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.models.wrap import Model, wrap
from adapt.progress import counting_bar
from adapt.training.fitting import Fitting

logger = logging.getLogger("adapt")


def check_several(method: Method, items: Sequence[Item]) -> None:
    """AdaptError where images may have several classes, and the method learns from one of each."""
    if not of_several(items) or method.of_several:
        return
    known = [methods.find(name) for name in methods.names()]
    able = ", ".join(each.name for each in known if each.of_several and "dual encoder" in each.serves)
    raise AdaptError(
        f"{items[0].name} and others may have several classes, and {method.name} learns from one class an image: take "
        f"one of {able}"
    )


def baseline_of(model: Adapted[Any], template: str) -> Model:
    """The backbone by itself: by hand-written prompts, by its own head, or as a language model that sees no image."""
    options: dict[str, Any] = {}
    if isinstance(model, AdaptedModel):
        options = {"fast": model.fast, "text_memory": model.text_memory}
    return wrap(model.backbone, ZeroShot(template), model.class_names, **options)


def answer_in_kind(training: Fitting, baseline: Model) -> None:
    """Where the training images may have several classes, both models answer each class by itself.

    The bias is set by the baseline's logits of the training images: at its own scale, and at the method's. A run that
    goes on, and whatever the method begins with, has the same.
    """
    if not (isinstance(baseline, AdaptedModel) and of_several(training.train_set)):
        return
    scale = (training.model.method.logit_scale or baseline.backbone.logit_scale) / baseline.backbone.logit_scale
    items, workers = training.train_set, training.workers
    biases = prior_biases(baseline, items, (1.0, scale), workers=workers, cache=training.cache)
    biases = training.processes.agreed(biases)  # to the last bit
    for each, bias in zip((baseline, training.model), biases, strict=True):
        each.answers = replace(each.answers, logit_bias=bias)


def zero_shot(training: Fitting, baseline: Model, test_set: Sequence[Item], template: str) -> dict[str, Any]:
    """Its figures on the test images."""
    with counting_bar(training.model.baseline, training.progress) as bar:
        scores = evaluate(baseline, test_set, workers=training.workers, cache=training.cache, progress=bar)
    return scores.figures() | ({"template": template} if isinstance(baseline, AdaptedModel) else {})


def note_harm(metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Says where training made the backbone worse, and what to try."""
    figure = main_figure(metrics["adapted"])
    before, after = metrics.get("zero_shot", {}).get(figure, 0.0), metrics["adapted"][figure]
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
        "adapted %s, %.1f %%, is below the %.1f %% of %s. %s, and compare on validation images",
        SHORT.get(figure, figure), 100 * after, 100 * before, metrics["baseline"], advice,
    )  # fmt: skip
