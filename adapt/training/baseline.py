"""The baseline of a training: the unadapted backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from adapt import methods, tasks
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.progress import LogEntry
from adapt.data.item import Item
from adapt.evaluation.scores import main_figure
from adapt.methods.base import Method
from adapt.models.classifier import AdaptedModel
from adapt.models.unadapted import without_method
from adapt.models.wrap import Model
from adapt.tasks import Task
from adapt.training.fitting import Fitting

logger = logging.getLogger("adapt")


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


def baseline_of(training: Fitting) -> Model:
    """Return a model of the unadapted backbone, the baseline with which the adapted model is compared."""
    baseline = without_method(training.model, training.template)
    if baseline.backbone.kind == "vision encoder":
        replace(training, model=baseline, chosen=None, run=None, noted={}).prepare()
    return baseline


def constant(training: Fitting, test_set: Sequence[Item]) -> JsonObject | None:
    """Return entries for metrics.json on the best answer without a look at the images, if that is the baseline.

    Otherwise, return None, and the unadapted backbone is the baseline.
    """
    task, names = tasks.of(training.train_set), training.model.class_names
    if not task.compares(training.model.method) or (answer := task.constant(training.train_set, names)) is None:
        return None
    if not test_set:
        return {}
    scores = task.scores(test_set, answer[1].expand(len(test_set), -1), names)
    return {"baseline": answer[0], "zero_shot": scores.figures()}


def zero_shot(training: Fitting, baseline: Model) -> dict[str, object]:
    """Return the metrics of the unadapted backbone on the test images."""
    figures = training.score(baseline, training.test_set, training.model.baseline).figures()
    return figures | ({"template": training.template} if isinstance(baseline, AdaptedModel) else {})


def note_harm(metrics: JsonObject, history: list[LogEntry]) -> None:
    """Log a warning with advice if the adapted model is worse than the unadapted backbone on the test images."""
    figure, title = main_figure(metrics["adapted"])
    before, after = metrics.get("zero_shot", {}).get(figure, 0.0), metrics["adapted"][figure]
    if after >= before:
        return
    last = [entry["accuracy"] for entry in history[-len(history) // 10 :] if "accuracy" in entry]  # the last tenth
    fitted = sum(last) / len(last) if last else None
    if fitted is None:
        advice = "try other settings of the method or more shots"
    elif fitted > 0.6:
        advice = f"it fits its training images ({100 * fitted:.1f} % right at the end), so try fewer epochs, a lower "
        advice += "train.lr or more shots"
    else:
        advice = f"it does not fit its training images yet ({100 * fitted:.1f} % right at the end), so try more epochs "
        advice += "or another train.lr"
    logger.warning(
        "the %s of the adapted model is %.1f %%, below the %.1f %% of %s: %s, and compare on validation images",
        title, 100 * after, 100 * before, metrics["baseline"], advice,
    )  # fmt: skip
