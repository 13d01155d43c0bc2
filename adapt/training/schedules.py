"""Learning rate schedules in closed form, as published."""

from __future__ import annotations

import math

from adapt.training.settings import TrainSettings


def cosine_epoch(epoch: int, epochs: int, lr: float, warmup_epochs: int, warmup_lr: float) -> float:
    """Return Dassl's learning rate: constant in the warm-up, then a cosine over epochs (CoOp and its descendants).

    The cosine starts after the warm-up but has the period of all epochs, so it does not reach zero.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return 0.5 * lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def cosine_iteration(step: int, steps: int, lr: float, min_lr: float) -> float:
    """Return CLIP-LoRA's learning rate: a cosine over all iterations, down to `min_lr`."""
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * step / steps))


def linear_iteration(step: int, steps: int, lr: float, min_lr: float) -> float:
    """Return the learning rate of a linear decay over all iterations, down to `min_lr` (DAS)."""
    return lr + (min_lr - lr) * step / steps


def learning_rate(settings: TrainSettings, epoch: int, epochs: int, step: int, steps: int) -> float:
    """Return the learning rate at `step` of `steps`, in `epoch` of `epochs`, both counted from 0.

    After a warm-up by steps, as in transformers' trainer (VLoRA, DAS), the schedule covers the remaining steps.
    """
    if settings.schedule == "cosine_epoch":
        return cosine_epoch(epoch, epochs, settings.lr, settings.warmup_epochs, settings.warmup_lr)
    rising = math.ceil(settings.warmup * steps)
    if step < rising:
        return settings.lr * step / rising
    if settings.schedule == "constant":
        return settings.lr
    decay = {"cosine_iteration": cosine_iteration, "linear_iteration": linear_iteration}[settings.schedule]
    return decay(step - rising, steps - rising, settings.lr, settings.min_lr)
