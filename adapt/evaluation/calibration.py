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

BOUNDS = (0.05, 20.0)  # answers that are all right, or no better than chance, have no finite optimum


def temperature(model: Adapted, items: Sequence[Item], *, workers: int = 2, cache: bool = True) -> float:
    """Return the temperature (a divisor of the model's logits) that maximises the likelihood of the labels of `items`.

    A temperature that the model already has is ignored. Raises AdaptError in the same cases as `evaluate`, and if the
    model answers in free text.
    """
    task = tasks.of(items)
    task.check_model(model, items)
    answers = Inference(workers, cache).all_logits(model, items)
    return likeliest(answers.double() * model.answers.temperature, task.numbers(items, model.class_names))


def likeliest(answers: Tensor, labels: Tensor) -> float:
    """Return the temperature within `BOUNDS` that minimises the cross-entropy of logits `(n, classes)` and labels."""
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
