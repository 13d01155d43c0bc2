"""What is measured before and after a training: the baseline, the temperature, and the scores.

Temperature scaling matches confidence to accuracy (Guo et al., ICML 2017). The temperature is chosen on validation
images, or by cross-validation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt import tasks
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.progress import LogEntry
from adapt.data.bags import has_bags, singles
from adapt.data.item import Item
from adapt.data.split import usual_count
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores, main_figure
from adapt.methods.base import Encoded, ImageStep
from adapt.methods.base.training import Part
from adapt.models.answer import can_answer_together
from adapt.models.base import Adapted
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.prediction import finite
from adapt.models.unadapted import without_method
from adapt.training.fitting import Fitting
from adapt.training.plan import CALIBRATION_FOLDS

logger = logging.getLogger("adapt")


def before(training: Fitting, test_set: Sequence[Item]) -> JsonObject:
    """Return the metrics of the baseline on the test images, and fit what the answers need to it.

    The baseline is the unadapted backbone, or, where the task says so, the best answer without a look at the images.
    """
    plan, model = training.plan, training.model
    # a temperature, and sets, are those of an earlier training; only multi-label data has a bias, which its task fits
    model.answers = replace(model.answers, temperature=1.0, logit_bias=None, sets=None)
    task = tasks.of(plan.train_set)
    if task.compares(model.method) and (answer := task.constant(plan.train_set, model.class_names)) is not None:
        if not test_set:
            return {}
        scores = task.scores(test_set, answer[1].expand(len(test_set), -1), model.class_names)
        return {"baseline": answer[0], "zero_shot": scores.reported()}
    if not model.has_baseline:
        return {}
    baseline = without_method(model, plan.template)
    if baseline.backbone.kind == "vision encoder":
        replace(training, plan=replace(plan, model=baseline, chosen=None), run=None, noted={}).prepare()
    task.fit_answers(baseline, plan.train_set, training.inference(), model)
    baseline.answers, model.answers = plan.processes.agreed((baseline.answers, model.answers))
    if not (test_set and plan.processes.main):
        return {}
    figures = training.score(baseline, test_set, model.baseline).reported()
    figures |= {"template": plan.template} if isinstance(baseline, AdaptedModel) else {}
    return {"baseline": model.baseline, "zero_shot": figures}


def after(training: Fitting, test_set: Sequence[Item]) -> tuple[JsonObject, Scores | None]:
    """Return the metrics of the trained model, and its scores on the test images, if any, with its temperature set."""
    model, val_set, metrics = training.model, training.plan.val_set, JsonObject()
    if model.answers.blend < 1:
        metrics["blend"] = model.answers.blend
    scores = training.score(model, test_set, "evaluating") if test_set else None
    if training.plan.calibrate and (val_set or training.held_back_answers):
        metrics["calibration"] = calibrated(training, scores)
        scores = training.score(model, test_set, "evaluating") if test_set else None
    if val_set and tasks.of(val_set).validates(model):
        metrics["val"] = training.score(model, val_set, "validating").reported()
    if scores is not None:
        metrics["adapted"] = scores.reported()
        if can_answer_together(model, test_set):
            metrics["together"] = training.score(model, test_set, "answering together", together=True).reported()
        if has_bags(test_set):
            metrics["by_image"] = training.score(model, singles(test_set), "each image").reported()
    return metrics, scores


def note_harm(metrics: JsonObject, history: list[LogEntry]) -> None:
    """Log a warning with advice if the adapted model is worse than the unadapted backbone on the test images."""
    figure, title = main_figure(metrics["adapted"])
    unadapted, adapted = metrics.get("zero_shot", {}).get(figure, 0.0), metrics["adapted"][figure]
    if adapted >= unadapted:
        return
    last = [entry["accuracy"] for entry in history[-len(history) // 10 :] if "accuracy" in entry]  # the last tenth
    fitted = sum(last) / len(last) if last else None
    ends = metrics["adapted"].get("intervals", {}).get(figure)
    chance = ", which may be chance" * bool(ends and unadapted <= ends[1])
    if fitted is None:
        advice = "judge by more test images" if chance else "try other settings of the method or more shots"
    elif fitted > 0.6:
        advice = f"it fits its training images ({100 * fitted:.1f} % right at the end), so try fewer epochs, a lower "
        advice += "train.lr or more shots"
    else:
        advice = f"it does not fit its training images yet ({100 * fitted:.1f} % right at the end), so try more epochs "
        advice += "or another train.lr"
    logger.warning(
        "the %s of the adapted model is %.1f %%, below the %.1f %% of %s%s: %s, and compare on validation images",
        title, 100 * adapted, 100 * unadapted, metrics["baseline"], chance, advice,
    )  # fmt: skip


FEW = 50  # images; on fewer, a temperature is uncertain
AT_MOST = 2**24  # held-out images times classes


def answers_by_folds(training: Fitting) -> tuple[Tensor, Tensor] | None:
    """Return the cross-validated logits `(n, classes)` of the training images, and their labels, as in `likeliest`.

    A method's logits may be larger or smaller with fewer images, so those of a fold are divided by their spread on the
    images that it learned from. If the method cannot learn from the images of any fold, a warning is logged, and None
    is returned. Afterwards, the method is fitted to a fold, and must still be fitted to all training images.
    """
    logits, labels, why = list[Tensor](), list[Tensor](), ""
    fewest, most = CALIBRATION_FOLDS
    enough, task = AT_MOST / len(training.model.class_names), tasks.of(training.plan.train_set)
    for fold in training.folds(max(fewest, usual_count(training.plan.train_set, most))):
        if sum(map(len, labels)) > enough:  # those of further folds would say the same
            break
        try:
            unseen = replace(fold.plan, val_set=())  # a method must not see the images that are held out
            replace(fold, plan=unseen).prepare()
        except AdaptError as error:
            why = str(error)
            continue
        unit = spread(_logits(fold, "train"), training.model.answers.several) or 1.0
        logits.append(_logits(fold, "val") / unit)
        labels.append(task.labels(fold.items("val"), training.model.class_names))
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
        unit = spread(_logits(training, "train"), model.answers.several) or 1.0
        chosen, images = likeliest(logits, labels) * unit, len(labels)
    else:
        items = training.plan.val_set
        chosen, images = temperature(model, items, workers=training.plan.workers, cache=training.plan.cache), len(items)
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


ADDED = 2.0  # right answers that are added to the observed ones, and as many whose label is any class
FLAT = 100.0  # standard deviations of the logits: a temperature at which all classes are about equally likely


def temperature(model: Adapted, items: Sequence[Item], *, workers: int = 2, cache: bool = True) -> float:
    """Return the temperature (a divisor of the model's logits) that makes the labels of `items` likeliest.

    A temperature that the model already has is ignored. Raises AdaptError in the same cases as `evaluate`, and if the
    model answers in free text.
    """
    task = tasks.of(items)
    task.check_model(model, items)
    answers = Inference(workers, cache).all_logits(model, items)
    return likeliest(answers.double() * model.answers.temperature, task.labels(items, model.class_names))


def spread(answers: Tensor, several: bool = False) -> float:
    """Return the standard deviation of logits `(n, classes)` about the mean of their row, for `several` labels about 0.

    Where an image may have several labels, a class with a logit above 0 is predicted.
    """
    if several:
        return float(answers.square().mean().sqrt())
    return float((answers - answers.mean(-1, keepdim=True)).std(correction=0))


def likeliest(answers: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of logits `(n, classes)` and `labels` `(n,)`.

    Bool labels `(n, classes)`, of which an image may have several, have the binary cross-entropy of each class. It
    changes no decision at a probability of one half.

    Two right answers and two of random classes are added to the observed ones, as Agresti and Coull (1998) do for
    shares, so that a few answers that happen to be all right do not become certain; of several labels two right ones
    and two of the class's share are added for each class. For answers no better than chance, the temperature is the
    highest, a hundred standard deviations of the logits.
    """
    count, classes = answers.shape
    several = labels.dim() == 2
    unit = spread(answers, several)
    if not unit:  # all classes are equally likely
        return 1.0
    if several:
        right = labels * count + (answers >= 0) * ADDED + labels.double().mean(0) * ADDED
    else:
        right = F.one_hot(labels, classes) * count + F.one_hot(answers.argmax(-1), classes) * ADDED + ADDED / classes
    entropy = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    with torch.inference_mode(False), torch.enable_grad():
        answers, targets = answers / unit, (right / (count + 2 * ADDED)).to(answers)
        log_inverse = torch.zeros((), dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_inverse], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = entropy(answers * log_inverse.exp(), targets)
            value.backward()
            return value

        optimizer.step(loss)
    return unit * min(float((-log_inverse.detach()).exp()), FLAT)
