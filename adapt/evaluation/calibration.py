"""The temperature with which a model is as sure as it is right (Guo et al., ICML 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.data.split import Item
from adapt.evaluation.evaluate import check_labels, logits
from adapt.features import labels_of
from adapt.models.base import Adapted

BOUNDS = (0.05, 20.0)  # where answers that are all right, or no better than a guess, would go beyond all


def temperature(model: Adapted[Any], items: Sequence[Item], *, workers: int = 2, cache: bool = True) -> float:
    """That of the model's answers under which labels of `items` are likeliest, its own so far being undone.

    AdaptError as `evaluate`, and where answers are free text.
    """
    check_labels(model, items)
    answers = torch.cat(list(logits(model, items, workers=workers, cache=cache))).cpu()
    return likeliest(answers.double() * model.answers.temperature, labels_of(items))


def likeliest(answers: Tensor, labels: Tensor) -> float:
    """The temperature, within bounds, that makes the cross-entropy of logits `(n, classes)` the smallest."""
    with torch.inference_mode(False), torch.enable_grad():
        answers, log_inverse = answers.clone(), torch.zeros((), dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([log_inverse], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(answers * log_inverse.exp(), labels)
            value.backward()
            return value

        optimizer.step(loss)
    return float((-log_inverse.detach()).exp().clamp(*BOUNDS))
