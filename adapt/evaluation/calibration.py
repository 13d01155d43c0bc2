"""Temperature scaling, which matches confidence to accuracy (Guo et al., ICML 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt import tasks
from adapt.data.item import Item
from adapt.evaluation.inference import Inference
from adapt.models.base import Adapted

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
    return likeliest(answers.double() * model.answers.temperature, task.numbers(items, model.class_names))


def spread(answers: Tensor) -> float:
    """Return the standard deviation of logits `(n, classes)` about the mean of their row."""
    return float((answers - answers.mean(-1, keepdim=True)).std(correction=0))


def likeliest(answers: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the cross-entropy of logits `(n, classes)` and `labels` `(n,)`.

    Two right answers and two of random classes are added to the observed ones, as Agresti and Coull (1998) do for
    shares, so that a few answers that happen to be all right do not become certain. For answers no better than chance,
    the temperature is the highest, a hundred standard deviations of the logits.
    """
    count, classes = answers.shape
    unit = spread(answers)
    if not unit:  # all classes are equally likely
        return 1.0
    right = F.one_hot(labels, classes) * count + F.one_hot(answers.argmax(-1), classes) * ADDED + ADDED / classes
    with torch.inference_mode(False), torch.enable_grad():
        answers, targets = answers / unit, (right / (count + 2 * ADDED)).to(answers)
        log_inverse = torch.zeros((), dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_inverse], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(answers * log_inverse.exp(), targets)
            value.backward()
            return value

        optimizer.step(loss)
    return unit * min(float((-log_inverse.detach()).exp()), FLAT)
