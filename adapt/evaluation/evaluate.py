"""Evaluation of a model on a list of items, in its final state, as published."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapt import tasks
from adapt.common.progress import Progress
from adapt.data.item import Item
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores
from adapt.models.base import Adapted


@torch.no_grad()
def evaluate(
    model: Adapted,
    items: Sequence[Item],
    *,
    workers: int = 2,
    cache: bool = True,
    progress: Progress | None = None,
    together: bool = False,
) -> Scores:
    """Return the scores of `model` on labelled `items`, such as accuracy for classes or recall for image-text pairs.

    Features of an unedited vision tower are read from the cache. A method that remembers earlier images gets the items
    as one stream, in the given order. With `together`, all items are answered as one set, by a method that can.

    Raises AdaptError if there are no items, if the model does not have the labels of the items, if the model is for
    another task, or if a file cannot be decoded.
    """
    task = tasks.of(items)
    task.check_model(model, items)
    task.check_answers(model)
    model.check_items(items)
    return task.score(model, items, Inference(workers, cache, progress, together))
