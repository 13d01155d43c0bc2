"""Before a search, and before training, adapters in place of blocks learn to do what their blocks do.

Source: FitNets (Romero et al., ICLR 2015): a thinner network first learns from the hidden layers of the whole one. DAS
starts from random adapters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapt.methods.base import ImageStep, Terms, Training

IMAGES = 4  # of one step: each has many tokens, and an adapter learns from every one of them


def imitate(bypasses: Mapping[str, nn.Module], epochs: int, training: Training) -> float:
    """Trains what stands in place of blocks, such as vision.3, and nothing else; the seconds that took.

    Rate and schedule are those of the training, without warm-up epochs; a step takes at most four images.
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
    """What each bypass lacks to its block in the whole backbone, summed up.

    The token that the tower is read at is one of many, and the one that counts: it is also measured by itself.
    """
    read_at_class = step.model.backbone.tower("vision").form.pooling == "class"
    lacking = []
    for name, (before, after) in step.frozen_blocks(list(bypasses)).items():
        before, after = before.float(), after.float()
        made = bypasses[name](before).float()
        lacking.append(_lacking(before, made, after))
        if read_at_class:
            lacking.append(_lacking(before[:, 0], made[:, 0], after[:, 0]))
    return torch.stack(lacking).sum()


def _lacking(before: Tensor, made: Tensor, after: Tensor) -> Tensor:
    """How far `made` of `before` is from `after`, all `(..., d)`: 0 where it is the same, 1 where nothing was done."""
    return (made - after).square().sum() / (after - before).square().sum()
