"""Before a search, and before training, adapters in place of blocks learn to do what their blocks do.

Source: FitNets (Romero et al., ICLR 2015): a thinner network first learns from the hidden layers of the whole one. DAS
starts from random adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adapt.adapted import Adapted
from adapt.engine.watching import watched
from adapt.model import AdaptedModel
from adapt.training.batches import Batches
from adapt.training.loop import Trainer
from adapt.training.progress import training_bar
from adapt.training.settings import TrainSettings


def imitate(model: Adapted[Any], batches: Batches, settings: TrainSettings, progress: bool) -> float:
    """Trains the bypasses of `model.method`, and nothing else, for `train.imitate` epochs; the seconds that took.

    Rate and schedule are those of the training, without warm-up epochs.
    """
    if not (settings.imitate and model.method.bypasses):
        return 0.0
    alone = settings.model_copy(update={"epochs": settings.imitate, "iterations": None, "warmup_epochs": 0})
    trainer = Trainer(model, _BlockBatches(batches), alone, None)
    with training_bar(trainer.plan.steps, 0, progress, "imitating blocks") as report:

        def told(entry: dict[str, Any]) -> None:
            report({key: value for key, value in entry.items() if key != "accuracy"})

        return trainer.train(told).seconds


class _BlockBatches:
    """Batches of images whose loss is what each bypass lacks to its block in the whole backbone, summed up."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, step: int) -> Iterator[tuple[Any, Tensor]]:
        return self._batches.epoch(epoch, step)

    def objective(self, model: AdaptedModel, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """No answers are given, so none are right."""
        backbone, bypasses = model.backbone, model.method.bypasses or {}
        with watched(backbone.towers, bypasses) as seen, torch.no_grad():
            model.backbone_features(inputs.to(backbone.device))
        lacking = [_lacking(module, *seen[name]) for name, module in bypasses.items()]
        return torch.stack(lacking).sum(), torch.zeros_like(labels, dtype=torch.bool)


def _lacking(bypass: nn.Module, before: Tensor, after: Tensor) -> Tensor:
    """How far `bypass` is from turning `before` into `after`, both `(b, l, d)`: 0 where it does, 1 for no change."""
    before, after = before.float(), after.float()
    return (bypass(before).float() - after).square().sum() / (after - before).square().sum()
