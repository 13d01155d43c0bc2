"""An image and random views of it, as one stack: the same views of it in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapt.data.decoding.draws import seed_for, seeded

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.preprocess import Transform


class Views:
    """A transform that gives `(1 + count, 3, h, w)`: the image by `plain`, then by as many draws of `random`."""

    def __init__(self, plain: Transform, random: Transform, count: int) -> None:
        self.plain, self.random, self.count = plain, random, count

    def __call__(self, image: Any) -> Tensor:
        import torch

        views = [self.plain(image)]
        for number in range(self.count):
            with seeded(seed_for("view", number)):
                views.append(self.random(image))
        return torch.stack(views)
