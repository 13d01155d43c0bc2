"""Before a search, and before training, adapters in place of blocks learn to do what their blocks do.

Source: FitNets (Romero et al., ICLR 2015): a thinner network first learns from the hidden layers of the whole one. DAS
starts from random adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapt.adapted import Adapted
from adapt.data.split import Item
from adapt.engine.watching import watched
from adapt.methods.step import Terms
from adapt.training.batches import ImageBatches
from adapt.training.loop import Trainer
from adapt.training.progress import training_bar
from adapt.training.settings import TrainSettings

IMAGES = 4  # of one step: each has many tokens, and an adapter learns from every one of them


def imitate(
    model: Adapted[Any], train_set: Sequence[Item], settings: TrainSettings, seed: int, progress: bool
) -> float:
    """Trains the bypasses of `model.method`, and nothing else, for `train.imitate` epochs; the seconds that took.

    Rate and schedule are those of the training, without warm-up epochs; a step takes at most four images.
    """
    if not (settings.imitate and model.method.bypasses):
        return 0.0
    length = {"epochs": settings.imitate, "iterations": None, "warmup_epochs": 0}
    step = {"batch_size": min(IMAGES, settings.batch_size), "accumulate": 1}
    alone = settings.model_copy(update=length | step)
    trainer = Trainer(model, ImageBatches(model, train_set, alone, seed), alone, None, partial(_lacking_blocks, model))
    with training_bar(trainer.plan.steps, 0, progress, "imitating blocks") as report:

        def told(entry: dict[str, Any]) -> None:
            report({key: value for key, value in entry.items() if key != "accuracy"})

        return trainer.train(told).seconds


def _lacking_blocks(model: Any, inputs: Tensor, labels: Tensor) -> tuple[Terms, Tensor]:
    """What each bypass lacks to its block in the whole backbone, summed up. No answers are given, so none are right.

    The token that the tower is read at is one of many, and the one that counts: it is also measured by itself.
    """
    backbone, bypasses = model.backbone, model.method.bypasses or {}
    read_at_class = backbone.tower("vision").form.pooling == "class"
    with watched(backbone.model, backbone.towers, bypasses) as seen, torch.no_grad():
        model.backbone_features(inputs.to(backbone.device))
    lacking = []
    for name, bypass in bypasses.items():
        before, after = (x.float() for x in seen[name])
        made = bypass(before).float()
        lacking.append(_lacking(before, made, after))
        if read_at_class:
            lacking.append(_lacking(before[:, 0], made[:, 0], after[:, 0]))
    return {"imitation": torch.stack(lacking).sum()}, torch.zeros_like(labels, dtype=torch.bool)


def _lacking(before: Tensor, made: Tensor, after: Tensor) -> Tensor:
    """How far `made` of `before` is from `after`, all `(..., d)`: 0 where it is the same, 1 where nothing was done."""
    return (made - after).square().sum() / (after - before).square().sum()
