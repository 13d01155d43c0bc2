"""Imitation: adapters in place of blocks learn the outputs of these blocks, before a search and before training.

Source: FitNets (Romero et al., ICLR 2015), in which a thin network first learns from hidden layers of the full one. DAS
starts from random adapters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapt.methods.base import ImageStep, Terms, Training

IMAGES = 4  # images per step: few, because an adapter learns from every token of an image


def imitate(bypasses: Mapping[str, nn.Module], epochs: int, training: Training) -> float:
    """Train only `bypasses`, the adapters that replace blocks such as vision.3, and return the duration in seconds.

    The recipe's learning rate and schedule are used without warm-up epochs, and a batch has at most four images.
    """

    def loss(step: ImageStep) -> Terms:
        return {"imitation": lacking_blocks(bypasses, step)}

    return training.train(
        "imitating blocks",
        parameters=[each for bypass in bypasses.values() for each in bypass.parameters()],
        loss=loss,
        epochs=epochs,
        warmup_epochs=0,
        batch_size=min(IMAGES, training.settings.batch_size),
        accumulate=1,
    )


def lacking_blocks(bypasses: Mapping[str, nn.Module], step: ImageStep) -> Tensor:
    """Return the sum of the relative errors with which the adapters `bypasses` imitate blocks of the frozen backbone.

    In a tower with class-token pooling, the relative error at the class token is also added.
    """
    read_at_class = step.model.backbone.tower("vision").form.pooling == "class"
    errors = []
    for name, (before, after) in step.frozen_blocks(list(bypasses)).items():
        before, after = before.float(), after.float()
        imitated = bypasses[name](before).float()
        errors.append(_relative_error(before, imitated, after))
        if read_at_class:
            errors.append(_relative_error(before[:, 0], imitated[:, 0], after[:, 0]))
    return torch.stack(errors).sum()


def _relative_error(before: Tensor, imitated: Tensor, after: Tensor) -> Tensor:
    """Return `|imitated - after|^2 / |before - after|^2` for a block's input `before` and output `after` `(..., d)`."""
    return (imitated - after).square().sum() / (after - before).square().sum()
