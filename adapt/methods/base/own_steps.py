"""Gradient steps that a method takes itself in `prepare`, on rows of features, where no images need to be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def minimise(
    loss: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    count: int,
    epochs: int,
    batch_size: int,
    lr: float,
) -> None:
    """Minimise `loss(chosen)` over batches of the numbers `(b,)` of `count` rows, by AdamW with a cosine schedule."""
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-count // batch_size))
    with torch.enable_grad():
        for _ in range(epochs):
            for chosen in torch.randperm(count).split(batch_size):
                optimizer.zero_grad()
                loss(chosen).backward()
                optimizer.step()
                schedule.step()
