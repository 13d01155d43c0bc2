"""Learning rate schedules in closed form, as published."""

from __future__ import annotations

import math

from adapt.recipe.settings import TrainSettings


def cosine_epoch(epoch: int, epochs: int, lr: float, warmup_epochs: int, warmup_lr: float) -> float:
    """Return Dassl's learning rate, which is constant in the warm-up and then follows a cosine over epochs, as in CoOp.

    The cosine starts after the warm-up, but its period is the total number of epochs, so the rate does not reach zero.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return 0.5 * lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def cosine_iteration(step: int, steps: int, lr: float, min_lr: float) -> float:
    """Return CLIP-LoRA's learning rate, which follows a cosine over all iterations down to `min_lr`."""
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * step / steps))


def linear_iteration(step: int, steps: int, lr: float, min_lr: float) -> float:
    """Return a learning rate that decays linearly over all iterations down to `min_lr`, as in DAS."""
    return lr + (min_lr - lr) * step / steps


def learning_rate(settings: TrainSettings, epoch: int, epochs: int, step: int, steps: int) -> float:
    """Return the learning rate at `step` of `steps` in `epoch` of `epochs`; step and epoch are counted from 0.

    With a warm-up over steps, as in the Trainer of transformers (VLoRA, DAS), the schedule begins after the warm-up.
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
